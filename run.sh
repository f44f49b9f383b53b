#!/usr/bin/env bash
# Speaker verification with Q-Margin, in stages. `bash run.sh` runs all of them on a synthetic mini corpus;
# `bash run.sh --help` lists the options. Every stage can be repeated: what is done is found and kept.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

# Options: `--name value` sets a variable of this block. The text after # is the help.
stage=0                         # first stage
stop_stage=7                    # last stage; 8, the export, is on demand
corpus=mini                     # mini: generated here; voxceleb: the four folders named below; own: --data made by tools/prepare_data.py
config=                         # experiment; default conf/{mini,resnet34,real_small}_qmargin.yaml
voxceleb1=                      # folder of VoxCeleb1 with its trial lists
voxceleb2=                      # folder of VoxCeleb2
musan=                          # folder of MUSAN
rirs=                           # folder of RIRS_NOISES
set=                            # changes to the config, such as "num_epochs=20 dataset_args.num_frms=300"
exp_dir=                        # run folder, instead of the config's exp_dir
lm_config=                      # config of stage 9; default as conf/mini_lm_arcface.yaml for conf/mini_arcface.yaml
lm_set=                         # changes to that config, whose exp_dir is that of the run and -LM
data=                           # data folder; default data/mini, data or data/own
corpora=corpora                 # where the mini corpus is made
mini_args=                      # options of tools/make_mini_corpus.py, such as "--num_train_spk 24"
data_type=shard                 # shard (tar files with an index) or raw (the audio files where they lie)
shard_format=wav                # wav or flac (half the disk, slower to read)
gpus=                           # such as "[0,1]": a process on each, in stages 3, 4 and 9; default: one, on a GPU if there is one
nproc=1                         # processes of stages 3, 4 and 9 when no GPUs are named
num_nodes=1                     # machines; the same command on each, in a folder that they share
HOST_NODE_ADDR=                 # host:port of one of them, where they meet; the 31 ports after it are used too
job_id=run                      # of the nodes that belong together
join_timeout=300                # seconds that a node waits for the others to come
timeout=30                      # minutes that training processes wait for each other
nj=                             # parallel jobs of preparation; default: number of cores
num_avg=                        # epochs to average, instead of the config's num_avg
checkpoint=                     # weights to extract with, to export and to fine-tune, instead of the average
trials=                         # trial lists to score, such as "vox1_H_cleaned"; default: all that stage 1 found
far=                            # false acceptance rates of the table; default: by the size of the corpus
score_norm_method=asnorm        # asnorm (the nearest training speakers) or snorm (all of them)
top_n=                          # nearest training speakers of asnorm; default: a quarter of them, at most 300

script=run.sh
# shellcheck disable=SC2034  # of options.sh
stages="0 corpora, 1 manifests, 2 shards, 3 training, 4 embeddings, 5 scores, 6 normalised scores, 7 calibration, 8 export,
  9 large-margin fine-tuning and stages 4 to 8 of it"
# shellcheck source=tools/options.sh
. tools/options.sh
parse_options "$@"

for name in stage stop_stage; do
  [[ ${!name} =~ ^[0-9]+$ ]] || fail "--$name must be a whole number, found '${!name}'"
done
for name in nproc num_nodes join_timeout timeout; do
  [[ ${!name} =~ ^[1-9][0-9]*$ ]] || fail "--$name must be a whole number from 1 on, found '${!name}'"
done
[ "$stage" -le "$stop_stage" ] || fail "--stage $stage comes after --stop_stage $stop_stage"
[ "$stop_stage" -le 9 ] || fail "there is no stage $stop_stage; the stages are 0 to 9"
[[ ${top_n:-2} =~ ^[0-9]+$ ]] || fail "--top_n must be a whole number, found '$top_n'"
[[ ${gpus:-0} =~ ^\[?[0-9]+(, *[0-9]+)*\]?$ ]] || fail "--gpus must be numbers such as \"[0,1]\", found '$gpus'"
[ "$num_nodes" -eq 1 ] || [ -n "$HOST_NODE_ADDR" ] || fail "--num_nodes $num_nodes needs --HOST_NODE_ADDR host:port"
if [ -n "$HOST_NODE_ADDR" ]; then
  host=${HOST_NODE_ADDR%:*} port=${HOST_NODE_ADDR##*:}
  [[ $host:$port =~ ^([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):[1-9][0-9]{0,4}$ ]] && [ "$port" -le 65504 ] \
    || fail "--HOST_NODE_ADDR must be host:port with a port up to 65504, found '$HOST_NODE_ADDR'"
fi
case $score_norm_method in asnorm | snorm) ;; *) fail "--score_norm_method must be asnorm or snorm, found '$score_norm_method'" ;; esac
case $data_type in shard | raw) ;; *) fail "--data_type must be shard or raw, found '$data_type'" ;; esac
case $shard_format in wav | flac) ;; *) fail "--shard_format must be wav or flac, found '$shard_format'" ;; esac
train_set=vox2_dev test_set=vox1 # folders in the data folder
case $corpus in
  mini)
    [ -z "$voxceleb1$voxceleb2$musan$rirs" ] || fail "folders of corpora go with --corpus voxceleb"
    config=${config:-conf/mini_qmargin.yaml}
    data=${data:-data/mini}
    far=${far:-"1e-1 1e-2 1e-3"}
    note="synthetic mini corpus: shows that the pipeline learns, says nothing about VoxCeleb"
    voxceleb1=$corpora/mini/voxceleb1 voxceleb2=$corpora/mini/voxceleb2
    musan=$corpora/mini/musan rirs=$corpora/mini/RIRS_NOISES
    ;;
  voxceleb)
    config=${config:-conf/resnet34_qmargin.yaml}
    data=${data:-data}
    far=${far:-"1e-2 1e-3 1e-4 1e-5"}
    note=
    ;;
  own)
    [ -z "$voxceleb1$voxceleb2$musan$rirs" ] || fail "with --corpus own, tools/prepare_data.py takes the folders"
    config=${config:-conf/real_small_qmargin.yaml}
    data=${data:-data/own}
    far=${far:-"1e-1 1e-2 1e-3"}
    note=
    train_set=train test_set=test
    for name in "$train_set" "$test_set"; do
      [ -e "$data/$name/wav.scp" ] || fail "there is no $data/$name; make it with tools/prepare_data.py" \
        "--wav_dir DIR --spk_from parent --num_test_speakers N --output_dir $data"
    done
    [ "$stop_stage" -ge 2 ] || fail "with --corpus own, tools/prepare_data.py is stages 0 and 1"
    [ "$stage" -ge 2 ] || stage=2
    ;;
  *) fail "--corpus must be mini, voxceleb or own, found '$corpus'" ;;
esac

# shellcheck source=path.sh
. ./path.sh
nj=${nj:-$(python -c 'import os; print(os.cpu_count())')}
read -r -a set <<< "$set"
read -r -a mini_args <<< "$mini_args"
read -r -a far <<< "$far"
read -r -a trials <<< "$trials"
[ -z "$exp_dir" ] || set+=("exp_dir=$exp_dir")
values=$(python tools/show_config.py --config "$config" --set "${set[@]}" --keys exp_dir num_avg)
{ read -r exp_dir; read -r config_num_avg; } <<< "$values"
num_avg=${num_avg:-$config_num_avg}
if [ "$stop_stage" -ge 9 ]; then # before all else, so that a mistake in it shows now
  read -r -a lm_set <<< "$lm_set"
  name=${config##*/}
  lm_config=${lm_config:-${config%"$name"}${name%%_*}_lm_${name#*_}}
  [ -e "$lm_config" ] || fail "there is no $lm_config for stage 9; give --lm_config"
  lm_init=${checkpoint:-$exp_dir/models/avg_model.pt}
  lm_changes=("exp_dir=$exp_dir-LM" "${lm_set[@]}" "model_init=$lm_init")
  lm_exp_dir=$(python tools/show_config.py --config "$lm_config" --set "${lm_changes[@]}" --keys exp_dir)
fi
corpora_args=()
for name in voxceleb1 voxceleb2 musan rirs; do
  [ -z "${!name}" ] || corpora_args+=("--$name" "${!name}")
done

device=auto
if [ -n "$gpus" ]; then
  device=cuda
  export CUDA_VISIBLE_DEVICES=${gpus//[\[\] ]/}
  IFS=, read -r -a gpu_list <<< "$CUDA_VISIBLE_DEVICES"
  nproc=${#gpu_list[@]}
fi

# Run a tool in K processes on each node; one process on one node is plain Python. Several nodes go from tool to tool
# together: one that does not share its work does it in the first process, while the others wait for its end.
launches=0
launch() { # K TOOL OPTION...
  local processes=$1 how
  shift
  if [ "$processes" -eq 1 ] && [ "$num_nodes" -eq 1 ]; then
    python "$@"
    return
  fi
  how=(--standalone)
  if [ "$num_nodes" -gt 1 ]; then # a port for each launch, as a quick node would meet the others of the one before
    how=(--nnodes "$num_nodes" --rdzv_backend c10d --rdzv_endpoint "$host:$((port + launches))" --rdzv_id "$job_id"
      --rdzv_conf "join_timeout=$join_timeout,read_timeout=$join_timeout")
    launches=$((launches + 1))
  fi
  python tools/launch.py "${how[@]}" --nproc_per_node "$processes" "$@"
}

trap 'exit 143' TERM # when the tool under way, which is told to stop too, has written its checkpoint

SECONDS=0

has_espeak() { python -c 'import espeakng_loader' 2> /dev/null; }
install_espeak() {
  ! has_espeak || return 0 # another node was faster
  echo "installing espeakng-loader, which speaks the mini corpus (eSpeak NG, GPL-3.0-or-later; nothing else uses it)"
  python -m pip install --quiet --disable-pip-version-check espeakng-loader==0.2.4
}

if begin 0 "corpora"; then
  if [ "$corpus" = mini ]; then
    has_espeak || wespeaker_alone install_espeak
    launch 1 tools/make_mini_corpus.py --output_dir "$corpora/mini" --nj "$nj" "${mini_args[@]}"
  fi
  launch 1 tools/check_corpora.py --config "$config" --set "${set[@]}" "${corpora_args[@]}"
fi

if begin 1 "manifests and trial lists"; then
  launch 1 tools/prepare_voxceleb.py --output_dir "$data" --nj "$nj" "${corpora_args[@]}"
fi

if begin 2 "training data as $data_type"; then
  case $data_type in
    shard) launch 1 tools/make_shards.py --data_dir "$data/$train_set" --format "$shard_format" --nj "$nj" ;;
    raw) launch 1 tools/make_raw_list.py --data_dir "$data/$train_set" ;;
  esac
fi

train() { # CONFIG CHANGE...
  local name dev train_args
  train_args=(--config "$1" --train_data "$data/$train_set/$data_type.list" --data_type "$data_type" --device "$device"
    --timeout "$timeout")
  for bank in lmdb wav.scp; do # WeSpeaker keeps databases; where an option comes twice, the last counts
    [ ! -e "$data/musan/$bank" ] || train_args+=(--noise_data "$data/musan/$bank")
    [ ! -e "$data/rirs/$bank" ] || train_args+=(--reverb_data "$data/rirs/$bank")
  done
  for name in "$test_set" vox2_test; do # speakers to show the progress on: of VoxCeleb2's test part where it is there
    [ ! -e "$data/$name/dev.kaldi" ] || dev=$data/$name
  done
  [ -z "${dev:-}" ] || train_args+=(--dev_data "$dev" --dev_trials "$dev/dev.kaldi")
  launch "$nproc" tools/train.py "${train_args[@]}" --set "${@:2}"
}

if begin 3 "training in $exp_dir"; then
  train "$config" "${set[@]}"
fi

if begin 4 "average and embeddings"; then
  if [ -z "$checkpoint" ]; then
    launch 1 tools/average_model.py --exp_dir "$exp_dir" --num_avg "$num_avg"
    checkpoint=$exp_dir/models/avg_model.pt
  fi
  launch "$nproc" tools/extract.py --exp_dir "$exp_dir" --data_dir "$data/$train_set" "$data/$test_set" \
    --checkpoint "$checkpoint" --device "$device"
fi

scores=$exp_dir/scores
score_files=() lists=()
if [ "$stop_stage" -ge 5 ]; then
  if [ ${#trials[@]} -eq 0 ]; then
    for name in "$data/$test_set"/trials/*.kaldi; do
      [[ $name == */vox2_cali.kaldi ]] || lists+=("$name") # WeSpeaker's, of training utterances
    done
  else
    for name in "${trials[@]}"; do lists+=("$data/$test_set/trials/${name%.kaldi}.kaldi"); done
  fi
  for list in "${lists[@]}"; do score_files+=("$(basename "$list").score"); done
fi
mean_args=(--mean_vec "$exp_dir/embeddings/$train_set/mean_vec.npy")
table_args=(
  --output_dir "$scores" --utt2spk "$data/$test_set/utt2spk" --far "${far[@]}" ${note:+--note "$note"}
)

check_counts() { # PREFIX: whether every list has as many scores of this kind as cosines
  local file
  for file in "${score_files[@]}"; do
    [ "$(wc -l < "$scores/$1$file")" -eq "$(wc -l < "$scores/$file")" ] \
      || fail "$scores/$1$file and $scores/$file have not the same number of trials; repeat stages 5 to 7"
  done
}

if begin 5 "scores"; then
  launch 1 tools/score.py --embeddings "$exp_dir/embeddings/$test_set/xvector.scp" --trials "${lists[@]}" \
    --target_far "${far[@]}" "${mean_args[@]}" "${table_args[@]}"
fi

if [ -z "$top_n" ] && [ "$stage" -le 7 ] && [ "$stop_stage" -ge 6 ]; then
  [ -e "$data/$train_set/spk2utt" ] || fail "$data/$train_set/spk2utt does not exist; run stage 1 first"
  top_n=$(($(wc -l < "$data/$train_set/spk2utt") / 4))
  top_n=$((top_n < 2 ? 2 : top_n > 300 ? 300 : top_n))
fi
cohort_args=(
  --cohort "$exp_dir/embeddings/$train_set/xvector.scp" --cohort_utt2spk "$data/$train_set/utt2spk" "${mean_args[@]}"
  --method "$score_norm_method" --top_n "$top_n"
)
normalised=${train_set}_$score_norm_method
[ "$score_norm_method" = snorm ] || normalised=$normalised$top_n

if begin 6 "scores normalised by $score_norm_method"; then
  launch 1 tools/score_norm.py --scores "${score_files[@]/#/$scores/}" \
    --embeddings "$exp_dir/embeddings/$test_set/xvector.scp" "${cohort_args[@]}" "${table_args[@]}"
  check_counts "${normalised}_"
fi

if begin 7 "calibration"; then
  launch 1 tools/calibrate.py --scores "${score_files[@]/#/$scores/${normalised}_}" --utt2dur "$data/$test_set/utt2dur" \
    --data_dir "$data/$train_set" "${cohort_args[@]}" --target_far "${far[@]}" "${table_args[@]}"
  check_counts "cali_${normalised}_"
fi

if begin 8 "export"; then
  wespeaker_extra export
  export_args=(--exp_dir "$exp_dir")
  [ -z "$checkpoint" ] || export_args+=(--checkpoint "$checkpoint")
  [ ${#trials[@]} -ne 1 ] || export_args+=(--trials "${trials[0]%.kaldi}") # of several, the one of most nontargets
  launch 1 tools/export.py "${export_args[@]}"
fi

if [ "$stage" -le 5 ] && [ "$stop_stage" -gt 5 ]; then # out of sight by now
  echo "== results of stage 5, before score normalisation: $scores/results.txt"
  cat "$scores/results.txt"
fi

if begin 9 "large-margin fine-tuning by $lm_config"; then
  [ -e "$lm_init" ] || fail "$lm_init, the weights to fine-tune, does not exist; run stages 3 and 4 first"
  train "$lm_config" "${lm_changes[@]}"
  options=()
  for name in corpus data gpus nproc num_nodes job_id join_timeout timeout nj score_norm_method top_n; do
    options+=("--$name" "${!name}")
  done
  [ -z "$HOST_NODE_ADDR" ] || options+=(--HOST_NODE_ADDR "$host:$((port + launches))")
  bash run.sh --stage 4 --stop_stage 8 --config "$lm_config" --set "${lm_set[*]}" --exp_dir "$lm_exp_dir" \
    --trials "${trials[*]}" --far "${far[*]}" "${options[@]}"
fi
echo "$script: stages $stage to $stop_stage are done in $((SECONDS / 60)) min $((SECONDS % 60)) s"

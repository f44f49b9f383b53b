"""Verify speakers with a trained model: compare recordings, enrol people, verify and identify them.

The exit code of compare, verify and identify is 0 for accept, 2 for reject, 3 where there is no threshold to decide
with; of every command it is 1 for an error. So whatever is not an accept stops a script.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wespeaker.command_line import Parser, program, run
from wespeaker.errors import InputError, listing

if TYPE_CHECKING:
    from wespeaker.deploy.embedder import Embedder
    from wespeaker.deploy.recording import Recording
    from wespeaker.deploy.verification import Verdict

MODEL_VARIABLE = "WESPEAKER_Q_MODEL"
ACCEPT, REJECT, UNDECIDED = 0, 2, 3
CONSENT = (
    "Voiceprints are biometric data: keep them only of people who agreed, where nobody else can read them, and no "
    "longer than they are needed. The command forget deletes a person's."
)

# What a command needs is imported in it: nobody waits for torch to read a sentence about an option.


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command; ``argv`` are the arguments, by default those of the process."""
    run(lambda: _main(argv), in_every_process=True, log_level=logging.WARNING)


def _main(argv: Sequence[str] | None) -> None:
    args = _parser().parse_args(argv)
    raise SystemExit(args.call(args))


def _parser() -> Parser:
    parser = Parser(__doc__, prog=program())
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, call: object, text: str, epilog: str | None = None) -> Parser:
        sub = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.", epilog=epilog)
        sub.set_defaults(call=call)
        sub.add_argument("--json", action="store_true", help="print one JSON object instead of text")
        return sub

    sub = command("embed", _embed, "embeddings of whole files, as they are before the mean is subtracted")
    _add_model(sub)
    sub.add_argument("file", nargs="+", help="audio, of any format and sample rate")
    sub.add_argument(
        "--output",
        type=Path,
        help="X.npy for an array (files, numbers), or a folder for xvector.ark, xvector.scp and their mean as those of "
        "stage 4; by default Kaldi's text is printed",
    )

    sub = command("compare", _compare, "score of two recordings, and whether they are of one speaker")
    _add_model(sub)
    _add_decision(sub)
    sub.add_argument("enroll", metavar="A", help="audio")
    sub.add_argument("test", metavar="B", help="audio")

    sub = command("enroll", _enroll, "enrol a person with one or more recordings", CONSENT)
    _add_model(sub)
    sub.add_argument("name", help="of the person")
    sub.add_argument("file", nargs="+", help="audio of that person alone")
    _add_store(sub)
    sub.add_argument("--replace", action="store_true", help="replace what is enrolled under that name")

    sub = command("verify", _verify, "whether a recording is of an enrolled person")
    _add_model(sub)
    _add_decision(sub)
    sub.add_argument("name", help="of the person")
    sub.add_argument("file", help="audio")
    _add_store(sub)

    sub = command("identify", _identify, "which enrolled people a recording may be of")
    _add_model(sub)
    _add_decision(sub)
    sub.add_argument("file", help="audio")
    _add_store(sub)
    sub.add_argument("--top", type=int, default=5, help="how many people to show")

    _add_store(command("people", _people, "list who is enrolled", CONSENT))

    sub = command("forget", _forget, "delete a person, so that no byte of the voiceprint is left in the file")
    sub.add_argument("name", help="of the person")
    _add_store(sub)
    return parser


def _add_model(parser: Parser) -> None:
    parser.add_argument(
        "--model",
        default=os.environ.get(MODEL_VARIABLE),
        help=f"a run folder, a folder that WeSpeaker published, or the final.onnx of stage 8, which needs no torch; "
        f"the environment variable {MODEL_VARIABLE} gives the default",
    )


def _add_store(parser: Parser) -> None:
    parser.add_argument("--store", type=Path, required=True, help="SQLite file of enrolled people")


def _add_decision(parser: Parser) -> None:
    parser.add_argument(
        "--far",
        type=float,
        help="false acceptance rate to decide at, one of those that were measured; by default the lowest that the "
        "trials of the model's card are enough to show",
    )
    parser.add_argument(
        "--p_target",
        type=float,
        help="prior probability of one speaker, for the probability that is printed beside the LLR; by default that of "
        "the calibration",
    )


def _embed(args: argparse.Namespace) -> int:
    import numpy as np

    from wespeaker.deploy.wording import kaldi_text, model_json, recording_json
    from wespeaker.files import replacing

    twice = sorted({path for path in args.file if args.file.count(path) > 1})
    if twice:
        raise InputError(f"embeddings are named after their files, and {listing(twice)} is given more than once")
    is_array = args.output is not None and args.output.suffix == ".npy"
    spaced = [path for path in args.file if len(path.split()) != 1]
    if spaced and not is_array and not args.json:
        raise InputError(
            f"in Kaldi's formats no key has a space, and {listing(spaced)} has; use --output X.npy or --json"
        )
    embedder = _load(args)
    recordings, embeddings = _read(args, embedder, args.file)
    found = dict(zip(args.file, embeddings, strict=True))
    where = None
    if is_array:
        where = args.output
        with replacing(where) as temporary:
            np.save(temporary, np.stack(embeddings))
    elif args.output is not None:
        from wespeaker.eval.embeddings import write_embeddings

        where = write_embeddings(args.output, found.items(), expected=len(found))
    values: dict[str, Any] = {**model_json(embedder.card), "files": [recording_json(one) for one in recordings]}
    if where is None:
        values["embeddings"] = {path: embedding.tolist() for path, embedding in found.items()}
        lines = kaldi_text(found)
    else:
        values["output"] = os.fspath(where)
        lines = [f"{len(found)} embeddings of {embedder.card.embed_dim} numbers: {where}"]
    _print(args, lines, values)
    return 0


def _compare(args: argparse.Namespace) -> int:
    from wespeaker.deploy.verification import choose_far, cosines, judge, voiceprint
    from wespeaker.deploy.wording import model_json, recording_json, verdict_json, verdict_lines

    embedder = _load(args)
    far = choose_far(embedder.card, args.far)
    recordings, embeddings = _read(args, embedder, [args.enroll, args.test])
    enroll, test = (
        voiceprint([embedding], embedder.card, names=[recording.path])
        for embedding, recording in zip(embeddings, recordings, strict=True)
    )
    verdict = judge(float(cosines([enroll], test)[0]), embedder.card, far=far, p_target=args.p_target)
    values = {**verdict_json(verdict, embedder.card), **model_json(embedder.card)}
    values["files"] = [recording_json(recording) for recording in recordings]
    _print(args, verdict_lines(verdict, embedder.card, chosen=args.far is not None), values)
    return _exit_code(verdict)


def _enroll(args: argparse.Namespace) -> int:
    from wespeaker.deploy.store import check_name, new_person, open_store
    from wespeaker.deploy.verification import voiceprint
    from wespeaker.deploy.wording import model_json, person_json, recording_json

    check_name(args.name)
    embedder = _load(args)
    recordings, embeddings = _read(args, embedder, args.file)
    person = new_person(
        args.name,
        voiceprint(embeddings, embedder.card, names=args.file),
        num_files=len(recordings),
        seconds=sum(recording.seconds for recording in recordings),
    )
    is_new = not args.store.exists()
    with open_store(args.store, create=True) as store:
        store.enrol(person, embedder.card, replace=args.replace)
    files = "1 file" if person.num_files == 1 else f"{person.num_files} files"
    lines = [f"{person.name} is enrolled in {args.store} with {files}, {person.seconds:.1f} s"]
    if is_new:
        lines.append(f"{args.store} is new. {CONSENT}")
    values = {**person_json(person), **model_json(embedder.card), "store": os.fspath(args.store)}
    values["files"] = [recording_json(recording) for recording in recordings]
    _print(args, lines, values)
    return 0


def _verify(args: argparse.Namespace) -> int:
    from wespeaker.deploy.store import check_name, open_store
    from wespeaker.deploy.verification import choose_far, cosines, judge, voiceprint
    from wespeaker.deploy.wording import model_json, person_json, recording_json, verdict_json, verdict_lines

    embedder = _load(args)
    far = choose_far(embedder.card, args.far)
    with open_store(args.store) as store:
        store.check_model(embedder.card)
        person = store.person(check_name(args.name))
    recordings, embeddings = _read(args, embedder, [args.file])
    test = voiceprint(embeddings, embedder.card, names=[args.file])
    score = float(cosines([person.voiceprint], test)[0])
    verdict = judge(score, embedder.card, far=far, p_target=args.p_target)
    lines = verdict_lines(verdict, embedder.card, chosen=args.far is not None, num_files=person.num_files)
    values = {**verdict_json(verdict, embedder.card), **model_json(embedder.card), "person": person_json(person)}
    values["files"] = [recording_json(recording) for recording in recordings]
    _print(args, lines, values)
    return _exit_code(verdict)


def _identify(args: argparse.Namespace) -> int:
    from wespeaker.deploy.store import open_store
    from wespeaker.deploy.verification import choose_far, rank, voiceprint
    from wespeaker.deploy.wording import candidate_lines, model_json, recording_json, verdict_json

    if args.top < 1:
        raise InputError(f"--top must be at least 1, found {args.top}")
    embedder = _load(args)
    far = choose_far(embedder.card, args.far)
    with open_store(args.store) as store:
        store.check_model(embedder.card)
        people = store.people()
    if not people:
        raise InputError(f"nobody is enrolled in {args.store}; enrol somebody first")
    recordings, embeddings = _read(args, embedder, [args.file])
    test = voiceprint(embeddings, embedder.card, names=[args.file])
    voiceprints = {person.name: person.voiceprint for person in people}
    candidates = rank(voiceprints, test, embedder.card, far=far, p_target=args.p_target)
    best, shown = candidates[0].verdict, candidates[: args.top]
    values: dict[str, Any] = {**model_json(embedder.card), "num_people": len(people), "far": far}
    values["false_accept_bound"] = None if far is None else min(1.0, len(people) * far)
    values["candidates"] = [{"name": one.name, **verdict_json(one.verdict, embedder.card)} for one in shown]
    values["files"] = [recording_json(recording) for recording in recordings]
    num_files = max(person.num_files for person in people)
    lines = candidate_lines(shown, num_people=len(people), card=embedder.card, num_files=num_files)
    _print(args, lines, values)
    return _exit_code(best)


def _people(args: argparse.Namespace) -> int:
    from wespeaker.deploy.store import open_store
    from wespeaker.deploy.wording import people_lines, person_json

    with open_store(args.store) as store:
        people = store.people()
    lines = people_lines(people) if people else [f"nobody is enrolled in {args.store}"]
    _print(args, lines, {"people": [person_json(person) for person in people]})
    return 0


def _forget(args: argparse.Namespace) -> int:
    from wespeaker.deploy.store import check_name, open_store

    name = check_name(args.name)
    with open_store(args.store) as store:
        store.forget(name)
    _print(args, [f"{name} is deleted from {args.store}; copies and backups of the file are not"], {"forgotten": name})
    return 0


def _load(args: argparse.Namespace) -> Embedder:
    from wespeaker.deploy.embedder import load_embedder

    if not args.model:
        raise InputError(f"no model is named; give --model or set {MODEL_VARIABLE}")
    return load_embedder(args.model)


def _read(args: argparse.Namespace, embedder: Embedder, paths: Sequence[str]) -> tuple[list[Recording], list[Any]]:
    """Return recordings and their embeddings (D,); warn of what is doubtful about them, unless the JSON does."""
    recordings, embeddings = [], []
    for path in paths:
        recording = embedder.read(path)
        if not args.json:
            for warning in recording.warnings:
                print(f"{program()}: warning: {warning}", file=sys.stderr)
        recordings.append(recording)
        embeddings.append(embedder.embed(recording.wav))
    return recordings, embeddings


def _print(args: argparse.Namespace, lines: Sequence[str], values: dict[str, Any]) -> None:
    print(json.dumps(values, ensure_ascii=False) if args.json else "\n".join(lines))


def _exit_code(verdict: Verdict) -> int:
    if verdict.accepted is None:
        return UNDECIDED
    return ACCEPT if verdict.accepted else REJECT

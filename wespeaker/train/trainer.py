"""The training loop of any task: one process or many, resumed from its checkpoint by calling it again.

The network is wrapped in DistributedDataParallel; the head is not: each process has the prototypes of its own classes
and their final gradients. Several processes take the steps that one takes with a batch as large as theirs together,
with one exception: batch normalisation in training takes its statistics from a process's own part of the batch, and
the running ones that are kept are the first process's.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from wespeaker.config import TrainConfig
from wespeaker.data.sampler import RunSampler
from wespeaker.errors import InputError
from wespeaker.lock import locked
from wespeaker.losses import HeadOutput
from wespeaker.progress import progress
from wespeaker.ranks import Ranks, wait_for_all
from wespeaker.train import checkpoint, schedules
from wespeaker.train.bad_utts import BadUtts
from wespeaker.train.finite import FiniteCheck, Taken
from wespeaker.train.learner import Learner
from wespeaker.train.meter import Meter
from wespeaker.train.preemption import Agreement, Preempted, leave_signals_to_parent, noted_signals
from wespeaker.train.resume import CHECKPOINTS, Checkpoints, read_ranks, read_run
from wespeaker.train.runlog import MetricsFile, check_run_folder, log_to_file, write_run_folder
from wespeaker.train.task import Batch, Task, changes
from wespeaker.watch import is_exchange, place_of_exchange

logger = logging.getLogger(__name__)


def train(config: TrainConfig, task: Task, *, ranks: Ranks) -> None:
    """Train to the last epoch, from the newest checkpoint in the run's folder if there is one.

    Args:
        config: the experiment.
        task: what is trained.
        ranks: this process among those of the run.

    Raises:
        InputError: data, folder or model_init do not fit the config, another process trains in the folder, or a number
            is not finite: which, in which step and of which examples is in the message and in a dump.
        Preempted: SIGTERM or SIGUSR1 came; what was trained is in a checkpoint.

    """
    if config.model_init is None and config.head_init != "keep":
        raise InputError(
            f"head_init: {config.head_init} is about the weights that a run starts from, and there are none: give "
            f"model_init=exp/<name>/models/avg_model.pt (run.sh does in stage 9)"
        )
    folder = Path(config.exp_dir)
    check_run_folder(folder, config, world_size=ranks.world_size)  # by all, so that all say what is wrong
    wait_for_all(ranks)
    with locked(folder) if ranks.first else nullcontext():
        if ranks.first:
            write_run_folder(folder, config, world_size=ranks.world_size)
        wait_for_all(ranks)
        log = log_to_file(folder / ("train.log" if ranks.first else f"train.rank{ranks.rank}.log"))
        try:
            _Run(config, task, ranks).go()
        finally:
            logging.getLogger("wespeaker").removeHandler(log)
            log.close()


class _Run:
    """One run: what learns, what it learns from, and the step it is at."""

    def __init__(self, config: TrainConfig, task: Task, ranks: Ranks) -> None:
        self.config, self.task, self.ranks = config, task, ranks
        self.folder = Path(config.exp_dir)
        self.models = self.folder / "models"
        self.checkpoints = Checkpoints(self.models / CHECKPOINTS, ranks)
        self.learner = Learner(config, task, ranks)
        self.finite = FiniteCheck(self.folder, self.learner.parameters, ranks)
        self.agreement = Agreement(ranks)
        self.meter = Meter(ranks)
        self.step = self._restore()
        self.sampler = RunSampler(
            len(task.dataset),
            batch_size=config.dataloader_args.batch_size,
            num_epochs=config.num_epochs,
            seed=config.seed,
            drop_last=config.dataloader_args.drop_last,
            rank=ranks.rank,
            world_size=ranks.world_size,
            start_step=self.step,
        )
        self.steps_per_epoch = self.sampler.steps_per_epoch
        self.num_steps = self.steps_per_epoch * config.num_epochs
        self.bad_utts = BadUtts(
            self.folder / "bad_utts.txt", max_share=task.max_bad_utts, num_utts=len(task.dataset), ranks=ranks
        )
        self.scale = schedules.scale_ratio(
            config.scheduler_args, world_size=ranks.world_size, batch_size=config.dataloader_args.batch_size
        )

    @property
    def epoch(self) -> float:
        """Epochs taken so far."""
        return self.step / self.steps_per_epoch

    @property
    def epoch_ends(self) -> bool:
        """Whether no epoch is under way."""
        return self.step % self.steps_per_epoch == 0

    def go(self) -> None:
        """Take the steps that are left."""
        self._announce()
        if self.step == self.num_steps:
            logger.info("the run in %s is complete; nothing is left to do", self.folder)
            return
        metrics = MetricsFile(self.folder / "metrics.jsonl", last_step=self.step) if self.ranks.first else None
        self.saved_at = time.monotonic()
        with self._bar() as bar, noted_signals() as signals, self._naming_exchanges():
            for batch, waited in self._batches():
                self.meter.update(self._take_step(batch), waited)
                bar.update()
                row_is_due = self.epoch_ends or self.step % self.config.log_batch_interval == 0
                stop, save, failed = self.agreement.any(
                    bool(signals), self._save_is_due(), self.finite.failed(wait=row_is_due)
                )
                if failed:
                    raise self.finite.error()
                if self.epoch_ends or stop or save:
                    self.bad_utts.gather(self.epoch)
                if row_is_due:
                    row = self._row(self.meter.row())
                    if self.epoch_ends:
                        with self.meter.paused():
                            row |= self._evaluation()
                    if metrics is not None:  # before the checkpoint: a row of a step that is not in it is taken back
                        metrics.write(row)
                        self._show(row, bar)
                if self.epoch_ends or stop or save:
                    with self.meter.paused():
                        self._save()
                if stop and self.step < self.num_steps:
                    logger.warning(
                        "told to stop by %s: step %d (epoch %.2f) is in %s, the same command goes on from there",
                        " and ".join(signals) or "another rank", self.step, self.epoch, self.checkpoints.folder,
                    )  # fmt: skip
                    raise Preempted

    def _take_step(self, batch: Batch) -> HeadOutput:
        """Take the next step, and before the first of an epoch what the head does once an epoch."""
        epoch = self.step // self.steps_per_epoch + 1
        if self.epoch_ends and (turned := self.learner.start_epoch(epoch)):
            logger.info("epoch %d: %d prototypes were re-initialised from their embeddings", epoch, turned)
        share = self.sampler.share(self.step)
        rate, margin = self._rate(self.step), self._margin(self.step)
        output = self.learner.take_step(batch, share=share, rate=rate, margin=margin)
        self.step += 1
        self.finite.add(Taken(self.step, self.epoch, rate, margin, batch, output))
        return output.head

    def _rate(self, step: int) -> float:
        return schedules.learning_rate(
            step,
            self.config.scheduler_args,
            steps_per_epoch=self.steps_per_epoch,
            num_epochs=self.config.num_epochs,
            scale=self.scale,
        )

    def _margin(self, step: int) -> float:
        return schedules.margin(step, self.config.margin_update, steps_per_epoch=self.steps_per_epoch)

    def _announce(self) -> None:
        peak = schedules.peak_learning_rate(
            self.config.scheduler_args,
            steps_per_epoch=self.steps_per_epoch,
            num_epochs=self.config.num_epochs,
            scale=self.scale,
        )
        logger.info("%s", self.task.about)
        logger.info(
            "%.2f M parameters without the head, %s over %d classes",
            sum(p.numel() for p in self.learner.backbone.parameters()) / 1e6,
            self.config.projection_args["project_type"], self.task.num_classes,
        )  # fmt: skip
        logger.info(
            "%d epochs of %d steps, batch %d x %d processes on %s, %s",
            self.config.num_epochs, self.steps_per_epoch, self.config.dataloader_args.batch_size,
            self.ranks.world_size, self.ranks.device.type, self.config.precision,
        )  # fmt: skip
        logger.info("effective peak learning rate %.4g (scale_ratio %.4g)", peak, self.scale)
        self._announce_gap()
        for doubt in self.config.doubts(device=self.ranks.device.type) if self.ranks.first else ():
            logger.warning("%s", doubt)
        if self.step:
            logger.info("going on after step %d (epoch %.2f)", self.step, self.epoch)

    def _announce_gap(self) -> None:
        """Say from which gap of cosines on the final margin lets a sample rest."""
        margin = self._margin(self.num_steps)
        gap = self.learner.head.zero_loss_gap(margin)
        if math.isinf(gap):
            return
        logger.info("at the final margin %.3g a sample's loss is zero from a cosine gap of %.3g on", margin, gap)

    def _batches(self) -> Iterator[tuple[Batch, float]]:
        """Yield batches on the device and the seconds that were waited for each."""
        args = self.config.dataloader_args
        loader = DataLoader(
            cast("Dataset[Any]", self.task.dataset),
            batch_sampler=self.sampler,
            collate_fn=self.task.collate,
            num_workers=args.num_workers,
            prefetch_factor=args.prefetch_factor if args.num_workers else None,
            pin_memory=args.pin_memory and self.ranks.device.type == "cuda",
            worker_init_fn=leave_signals_to_parent,
            generator=torch.Generator(),  # else a start of the loader would draw from the generator of the run
        )
        started = time.perf_counter()
        for batch in loader:
            if isinstance(batch, InputError):
                raise batch
            self.bad_utts.add(batch.bad)
            batch = batch.to(self.ranks.device)
            yield batch, time.perf_counter() - started
            started = time.perf_counter()

    def _row(self, means: dict[str, float]) -> dict[str, Any]:
        """Return a row of metrics.jsonl; margin and learning_rate are those of the last step."""
        margin, rate = self._margin(self.step - 1), self._rate(self.step - 1)
        row = {"step": self.step, "epoch": round(self.epoch, 4), **means, "margin": margin, "learning_rate": rate}
        gap, scaler = self.learner.head.zero_loss_gap(), self.learner.scaler
        row |= {"zero_loss_gap": gap} if math.isfinite(gap) else {}
        return row | ({"grad_scale": scaler.get_scale()} if scaler.is_enabled() else {})

    def _evaluation(self) -> dict[str, float]:
        """Evaluate the network, on the first rank and where it is due."""
        epoch, config = self.step // self.steps_per_epoch, self.config
        due = config.dev_interval and (epoch % config.dev_interval == 0 or epoch == config.num_epochs)
        if not (self.ranks.first and self.task.evaluate is not None and due):
            return {}
        network = self.learner.network
        network.eval()
        try:
            return self.task.evaluate(network)
        finally:
            network.train()

    def _save_is_due(self) -> bool:
        """Tell whether the middle of an epoch wants a checkpoint, by the clock of the first rank."""
        waited = time.monotonic() - self.saved_at
        return self.ranks.first and bool(self.config.save_minutes) and waited >= 60 * self.config.save_minutes

    def _save(self) -> None:
        """Write what the run needs to go on, and the epoch's weights where they are kept; all ranks leave together."""
        if any(self.agreement.any(self.finite.failed(wait=True) or self.finite.weights_failed())):
            raise self.finite.error()
        own = {
            **self.learner.own_state(),
            "rng": _random_state(self.ranks.device),
            "meter": self.meter.state(),
        }
        run = {
            **self.learner.run_state(),
            "step": self.step,
            "facts": dict(self.task.facts),
            "world_size": self.ranks.world_size,
        }

        def export(unfinished: Path) -> None:
            path = checkpoint.model_path(self.models, int(self.epoch))
            checkpoint.save(self.learner.model_weights(unfinished), path)

        self.checkpoints.save(self.step, own, run, before=export if self._model_is_kept() else None)
        self.saved_at = time.monotonic()

    def _model_is_kept(self) -> bool:
        """Tell whether an epoch has just ended whose weights are kept."""
        epoch, config = int(self.epoch), self.config
        return self.epoch_ends and (
            epoch % config.save_epoch_interval == 0 or epoch > config.num_epochs - config.num_avg
        )

    def _restore(self) -> int:
        """Load the newest checkpoint if there is one; return the step it was written after."""
        folder = self.checkpoints.newest()
        if folder is None:
            if self.config.model_init is not None:
                logger.info("starting from %s (head_init %s)", self.config.model_init, self.config.head_init)
                self.learner.start_from(
                    Path(self.config.model_init), head_init=self.config.head_init, facts=self.task.facts
                )
            return 0
        run, ranks = read_run(folder), read_ranks(folder)
        if differences := changes(run["facts"], self.task.facts):
            raise InputError(
                f"{folder} is of a run on other data: {'; '.join(differences)}; "
                f"give another --exp_dir, or the same data"
            )
        self.learner.load(run, folder)
        _set_random_state(ranks[self.ranks.rank % len(ranks)]["rng"], self.ranks.device)
        if run["world_size"] == self.ranks.world_size:
            self.meter.load([ranks[self.ranks.rank]["meter"]])
        elif self.ranks.first:
            self.meter.load([state["meter"] for state in ranks])
        return int(run["step"])

    @contextmanager
    def _bar(self) -> Iterator[tqdm[Any]]:
        with (
            logging_redirect_tqdm() if self.ranks.first else nullcontext(),
            progress(range(0), desc="training", total=self.num_steps, initial=self.step, unit="step") as bar,
        ):
            yield bar

    @contextmanager
    def _naming_exchanges(self) -> Iterator[None]:
        """Say after which step, and where, an exchange with the other ranks timed out or broke off."""
        try:
            yield
        except RuntimeError as error:
            if not is_exchange(error):
                raise
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            text = (
                f"rank {self.ranks.rank}, after step {self.step} (epoch {self.epoch:.2f}): an exchange with the other "
                f"ranks failed in {place_of_exchange(error)}: {reason}"
            )
            logger.error("%s", text)  # at once, as the watch over the ranks may end this process when it knows more
            raise ConnectionError(f"{text}; look at their output, and allow more time if they are slow") from error

    def _show(self, row: dict[str, Any], bar: tqdm[Any]) -> None:
        bar.set_postfix_str(f"epoch {row['epoch']:.2f}, loss {row['loss']:.3f}, accuracy {row['accuracy']:.1%}")
        evaluation = "".join(f"  {name} {value:.4f}" for name, value in row.items() if name.startswith("dev_"))
        logger.info(
            "epoch %6.2f  loss %.4f  accuracy %5.1f %%  margin %.3f  lr %.2e  support %.1f  %.0f/s  wait %.0f %%%s",
            row["epoch"], row["loss"], 100 * row["accuracy"], row["margin"], row["learning_rate"], row["support"],
            row["samples_per_sec"], 100 * row["data_wait"], evaluation,
        )  # fmt: skip


def _random_state(device: torch.device) -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    return state | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def _set_random_state(state: dict[str, torch.Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)

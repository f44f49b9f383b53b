"""The training loop: one process or many, resumed from its checkpoint by calling it again."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from wespeaker.config import Config
from wespeaker.data.augment import Augmenter
from wespeaker.data.corpora import uses_noise, uses_reverb
from wespeaker.data.dataset import Batch, TrainingSet, collate, read_training_list
from wespeaker.data.manifest import read_bank
from wespeaker.data.sampler import RunSampler
from wespeaker.errors import InputError, listing
from wespeaker.losses import Head, RowSparseSGD, forget_momentum
from wespeaker.progress import progress
from wespeaker.ranks import Ranks, wait_for_all
from wespeaker.speaker_net import SpeakerNet
from wespeaker.train import checkpoint, schedules
from wespeaker.train.bad_utts import BadUtts
from wespeaker.train.dev import DevTrials, dev_eer
from wespeaker.train.meter import Meter
from wespeaker.train.runlog import MetricsFile, log_to_file, open_run_folder

logger = logging.getLogger(__name__)

# Cosine gaps between the label and the nearest other class above this are hardly ever seen.
LARGEST_GAP = 1.0

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {"SGD": RowSparseSGD, "AdamW": torch.optim.AdamW}


@dataclass(frozen=True)
class TrainingData:
    """The files that a run reads."""

    train_list: Path  # raw.list or shard.list
    data_type: str  # raw or shard
    noise_scp: Path | None = None
    reverb_scp: Path | None = None


def train(config: Config, data: TrainingData, *, dev: DevTrials | None, ranks: Ranks) -> None:
    """Train to the last epoch, from the checkpoint in the run's folder if there is one.

    Args:
        config: the experiment.
        data: what to train on.
        dev: trials to show progress on; None: none.
        ranks: this process among those of the run.

    Raises:
        InputError: data or folder do not fit the config, or the loss is not finite.

    """
    if ranks.world_size > 1 and config.projection_args.get("weight_grad") == "sparse":
        raise InputError("projection_args.weight_grad: sparse is for a run of one process; give dense for several")
    dataset = _training_set(config, data)  # first, so that bad data leaves no run folder behind
    folder = Path(config.exp_dir)
    if ranks.first:
        open_run_folder(folder, config)
    wait_for_all(ranks)
    log = log_to_file(folder / ("train.log" if ranks.first else f"train.rank{ranks.rank}.log"))
    try:
        _Run(config, dataset, dev, ranks).go()
    finally:
        logging.getLogger("wespeaker").removeHandler(log)
        log.close()


def _training_set(config: Config, data: TrainingData) -> TrainingSet:
    args = config.dataset_args
    utterances = read_training_list(data.train_list, data.data_type, args)
    augmenter = Augmenter(
        noises=read_bank(data.noise_scp) if data.noise_scp and uses_noise(config) else (),
        rirs=read_bank(data.reverb_scp) if data.reverb_scp and uses_reverb(config) else (),
        aug_prob=args.aug_prob,
        reverb_share=args.reverb_share,
        rate=args.resample_rate,
        align_direct_path=args.align_direct_path,
        power_floor=args.snr_power_floor,
        peak_normalise=args.peak_normalise,
    )
    return TrainingSet(utterances, args, augmenter, seed=config.seed)


class _Run:
    """One run: network, optimiser, loader and the step it is at."""

    def __init__(self, config: Config, dataset: TrainingSet, dev: DevTrials | None, ranks: Ranks) -> None:
        self.config, self.dataset, self.dev, self.ranks = config, dataset, dev, ranks
        self.models = Path(config.exp_dir) / "models"
        torch.manual_seed(config.seed)
        self.net = SpeakerNet(config, dataset.num_classes).to(ranks.device).train()
        self.optimizer = OPTIMIZERS[config.optimizer](
            self.net.parameters(), lr=config.scheduler_args.initial_lr, **config.optimizer_args
        )
        self.step = self._restore()
        self.sampler = RunSampler(
            len(dataset),
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
            Path(config.exp_dir) / "bad_utts.txt",
            max_share=config.dataset_args.max_bad_utts,
            num_utts=len(dataset),
            ranks=ranks,
        )
        self.scale = schedules.scale_ratio(
            config.scheduler_args, world_size=ranks.world_size, batch_size=config.dataloader_args.batch_size
        )

    @property
    def _head(self) -> Head:
        assert self.net.projection is not None
        return self.net.projection

    def go(self) -> None:
        """Take the steps that are left."""
        self._announce()
        if self.step == self.num_steps:
            logger.info("the run in %s is complete; nothing is left to do", self.config.exp_dir)
            return
        metrics = (
            MetricsFile(Path(self.config.exp_dir) / "metrics.jsonl", last_step=self.step) if self.ranks.first else None
        )
        network = self._parallel()
        meter = Meter(self.ranks)
        with self._bar() as bar:
            for batch, waited in self._batches():
                if self.step % self.steps_per_epoch == 0:
                    self._start_epoch()
                rate, margin = self._set_schedules()
                out = network(batch.wav, batch.labels, batch.masks)
                self.optimizer.zero_grad(set_to_none=True)
                (out.loss * self.sampler.share(self.step)).backward()  # the ranks' gradients are averaged
                self.optimizer.step()
                self.step += 1
                meter.update(out, waited)
                bar.update()
                epoch_ends = self.step % self.steps_per_epoch == 0
                if epoch_ends:
                    self.bad_utts.end_epoch(self.step // self.steps_per_epoch)
                if epoch_ends or self.step % self.config.log_batch_interval == 0:
                    row = self._row(meter.row(), rate, margin)
                    if epoch_ends:
                        row |= self._dev_row()
                    if metrics is not None:  # before the checkpoint: a row of a step that is not in it is taken back
                        metrics.write(row)
                        self._show(row, bar)
                    if epoch_ends:
                        self._save()
                        meter = Meter(self.ranks)

    def _announce(self) -> None:
        peak = schedules.peak_learning_rate(
            self.config.scheduler_args,
            steps_per_epoch=self.steps_per_epoch,
            num_epochs=self.config.num_epochs,
            scale=self.scale,
        )
        size = sum(p.numel() for p in self.net.model.parameters()) / 1e6
        logger.info(
            "%s (%.2f M parameters), %s over %d classes (%d speakers, %d speeds)",
            self.config.model, size, self.config.projection_args["project_type"], self.dataset.num_classes,
            len(self.dataset.speakers), len(self.dataset.speeds),
        )  # fmt: skip
        logger.info(
            "%d utterances, %d epochs of %d steps, batch %d x %d processes on %s",
            len(self.dataset), self.config.num_epochs, self.steps_per_epoch,
            self.config.dataloader_args.batch_size, self.ranks.world_size, self.ranks.device.type,
        )  # fmt: skip
        logger.info("effective peak learning rate %.4g (scale_ratio %.4g)", peak, self.scale)
        self._announce_gap()
        if self.step:
            logger.info("going on after step %d (epoch %.2f)", self.step, self.step / self.steps_per_epoch)

    def _announce_gap(self) -> None:
        """Say from which gap of cosines on the final margin lets a sample rest, and warn where there is none."""
        margin = schedules.margin(self.num_steps, self.config.margin_update, steps_per_epoch=self.steps_per_epoch)
        gap = self._head.zero_loss_gap(margin)
        if math.isinf(gap):
            return
        logger.info("at the final margin %.3g a sample's loss is zero from a cosine gap of %.3g on", margin, gap)
        if gap > LARGEST_GAP:
            advice = "raise projection_args.scale"
            if self._head.zero_loss_gap(0.0) < gap:  # it is the margin's doing
                advice = "lower it, or bring projection_args.scale nearer to 1 / ((alpha - 1) margin)"
            logger.warning(
                "the final margin %.3g asks for a cosine gap of %.3g (zero_loss_gap), which hardly a sample reaches%s: "
                "losses do not become zero and training may suffer; gaps of 0.3 to 0.7 train well: %s",
                margin, gap, " (2 is the largest there is)" if gap > 2.0 else "", advice,
            )  # fmt: skip

    def _parallel(self) -> nn.Module:
        if self.ranks.world_size == 1:
            return self.net
        return DistributedDataParallel(
            self.net, device_ids=[self.ranks.device.index] if self.ranks.device.type == "cuda" else None
        )

    def _batches(self) -> Iterator[tuple[Batch, float]]:
        """Yield batches on the device and the seconds that were waited for each."""
        args = self.config.dataloader_args
        loader = DataLoader(
            self.dataset,
            batch_sampler=self.sampler,
            collate_fn=collate,
            num_workers=args.num_workers,
            prefetch_factor=args.prefetch_factor if args.num_workers else None,
            pin_memory=args.pin_memory and self.ranks.device.type == "cuda",
        )
        started = time.perf_counter()
        for batch in loader:
            if isinstance(batch, InputError):
                raise batch
            self.bad_utts.add(batch.bad)
            batch = batch.to(self.ranks.device)
            yield batch, time.perf_counter() - started
            started = time.perf_counter()

    def _start_epoch(self) -> None:
        """Let the head do what it does once an epoch."""
        epoch = self.step // self.steps_per_epoch + 1
        rows = self._head.start_epoch(epoch)
        if len(rows):
            forget_momentum(self.optimizer, self._head.weight, rows)
            logger.info("epoch %d: %d prototypes were re-initialised from their embeddings", epoch, len(rows))

    def _set_schedules(self) -> tuple[float, float]:
        rate = schedules.learning_rate(
            self.step,
            self.config.scheduler_args,
            steps_per_epoch=self.steps_per_epoch,
            num_epochs=self.config.num_epochs,
            scale=self.scale,
        )
        margin = schedules.margin(self.step, self.config.margin_update, steps_per_epoch=self.steps_per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self._head.update(margin=margin)
        return rate, margin

    def _row(self, means: dict[str, float], rate: float, margin: float) -> dict[str, Any]:
        if not math.isfinite(means["loss"]):
            raise InputError(
                f"the loss became {means['loss']} at or before step {self.step} "
                f"(epoch {self.step / self.steps_per_epoch:.2f}, learning rate {rate:.4g}, margin {margin:.3g}); "
                f"lower scheduler_args.initial_lr, or look for damaged audio with a lower log_batch_interval"
            )
        epoch = self.step / self.steps_per_epoch
        row = {"step": self.step, "epoch": round(epoch, 4), **means, "margin": margin, "learning_rate": rate}
        gap = self._head.zero_loss_gap()
        return row | ({"zero_loss_gap": gap} if math.isfinite(gap) else {})

    def _dev_row(self) -> dict[str, float]:
        """Try the dev trials, on the first rank and where they are due."""
        epoch, config = self.step // self.steps_per_epoch, self.config
        due = config.dev_interval and (epoch % config.dev_interval == 0 or epoch == config.num_epochs)
        if not (self.ranks.first and self.dev is not None and due):
            return {}
        rate, num_workers = config.dataset_args.resample_rate, config.dataloader_args.num_workers
        return {"dev_eer": dev_eer(self.net, self.dev, rate=rate, num_workers=num_workers)}

    def _save(self) -> None:
        """Write what the run needs to go on, and the epoch's weights where they are kept; all ranks leave together."""
        if self.ranks.first:
            self._write_checkpoint(self.step // self.steps_per_epoch)
        wait_for_all(self.ranks)

    def _write_checkpoint(self, epoch: int) -> None:
        config = self.config
        state: dict[str, Any] = {
            "step": self.step,
            "data": self._data_facts(),
            "net": self.net.flat_state(),
            "optimizer": self.optimizer.state_dict(),
            "torch_rng": torch.get_rng_state(),
        }
        if epoch % config.save_epoch_interval == 0 or epoch > config.num_epochs - config.num_avg:
            checkpoint.save(state["net"], checkpoint.model_path(self.models, epoch))
        checkpoint.save(state, self.models / checkpoint.CHECKPOINT)

    def _restore(self) -> int:
        """Load the checkpoint if there is one; return the step it was written after."""
        path = self.models / checkpoint.CHECKPOINT
        if not path.exists():
            return 0
        state = checkpoint.load(path)
        changes = _changes(state["data"], self._data_facts())
        if changes:
            raise InputError(
                f"{path} is of a run on other data: {'; '.join(changes)}; "
                f"give another --exp_dir, or the same data and number of processes"
            )
        self.net.load_flat_state(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["torch_rng"])
        return int(state["step"])

    def _data_facts(self) -> dict[str, Any]:
        """Return what must not change when a run goes on: labels are positions in the list of speakers."""
        return {
            "utterances": len(self.dataset),
            "classes": self.dataset.num_classes,
            "processes": self.ranks.world_size,
            "speakers": self.dataset.speakers,
        }

    @contextmanager
    def _bar(self) -> Iterator[tqdm[Any]]:
        with (
            logging_redirect_tqdm() if self.ranks.first else nullcontext(),
            progress(range(0), desc="training", total=self.num_steps, initial=self.step, unit="step") as bar,
        ):
            yield bar

    def _show(self, row: dict[str, Any], bar: tqdm[Any]) -> None:
        bar.set_postfix_str(f"epoch {row['epoch']:.2f}, loss {row['loss']:.3f}, accuracy {row['accuracy']:.1%}")
        dev = f", dev EER {row['dev_eer']:.2%}" if "dev_eer" in row else ""
        logger.info(
            "epoch %6.2f  loss %.4f  accuracy %5.1f %%  margin %.3f  lr %.2e  support %.1f  %.0f utt/s  wait %.0f %%%s",
            row["epoch"], row["loss"], 100 * row["accuracy"], row["margin"], row["learning_rate"], row["support"],
            row["utt_per_sec"], 100 * row["data_wait"], dev,
        )  # fmt: skip


def _changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Say which facts about the data of a run have changed."""
    counts = [name for name in ("utterances", "classes", "processes") if before[name] != now[name]]
    gone = sorted(set(before["speakers"]) - set(now["speakers"]))
    new = sorted(set(now["speakers"]) - set(before["speakers"]))
    return [
        *(f"{before[name]} {name} then, {now[name]} now" for name in counts),
        *([f"speakers that are no longer there: {listing(gone, 5)}"] if gone else []),
        *([f"speakers that were not there: {listing(new, 5)}"] if new else []),
    ]

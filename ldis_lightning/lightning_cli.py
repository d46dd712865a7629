"""fit, validate, test and predict: Lightning's command line with our links, defaults and messages."""

import importlib
import json
import logging
import pkgutil
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import Namespace
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ProgressBar, TQDMProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

from ldis_lightning.callbacks import ResultTable
from ldis_lightning.callbacks.preemption import PlainSignals, Preemption, leave_together
from ldis_lightning.checkpoint_files import AtomicCheckpointIO
from ldis_lightning.cli import Stopped
from ldis_lightning.config_files import read_mapping, resolve_configs, with_parents
from ldis_lightning.datamodules import EpisodeDataModule
from ldis_lightning.errors import UserError
from ldis_lightning.parse_errors import explain
from ldis_lightning.platform import check, check_packages, explain_trainer
from ldis_lightning.resume import LAST, ContinueRun, Resumption, continue_in_folder, resolve
from ldis_lightning.sweeps.grid import Sweep

# Their classes can be named without a path in configs, because importing makes them known as subclasses.
COMPONENTS = ("alignment", "callbacks", "datamodules", "instruction", "latent", "meta_architectures")

NOISE = (  # of Lightning and torch, about nothing that a user of `ldis` can or should change
    ".*LeafSpec.*",
    ".*treespec.*",
    ".*does not have many workers.*",
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*module\\(s\\) in eval mode at the start of training.*",  # the frozen autoencoder
    ".*recommended to use `self.log\\('(val|test)/.*sync_dist=True.*",  # those values are gathered already
    ".*The dirpath has changed from.*",
    ".*WeightAveraging callback with a model that overrides.*",  # sharding is what it warns of; `platform` refuses it
    ".*FSDP2-wrapped module .* returned a view tensor.*",  # nothing is changed in place
    ".*The number of training batches .* is smaller than the logging interval.*",
)
TIPS = ("💡 Tip", "TPU available", "HPU available", "Detected KeyboardInterrupt")  # `ldis` itself reports the last


def main(args: Sequence[str]) -> int:
    """Run `args`: the command, fit, validate, test or predict, and its options.

    Raises:
        UserError: the command line, a config or what the Trainer makes of them is wrong.
    """
    quieten()
    command, *options = args
    try:
        LDISCLI(command, options)
    except MisconfigurationException as error:
        raise UserError(explain_trainer(error)) from error
    return 0


class LDISParser(LightningArgumentParser):
    """A parser whose errors are one short message each, raised as `UserError` instead of printed below the usage."""

    shorten: Callable[[str], str] = staticmethod(str)
    """Makes the short message of jsonargparse's long one."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise a short `UserError`; jsonargparse's own trials (`exit_on_error=False`) are left alone."""
        if self.exit_on_error:
            raise UserError(self.shorten(message)) from ex
        super().error(message, ex)


class LDISCLI(LightningCLI):
    """Lightning's CLI for one command at a time (a parser takes a second to build, and one is enough).

    What it adds to Lightning's arguments: `score_after_fit`, and the `sweep` block, which only `ldis sweep` reads.

    Args:
        command: "fit", "validate", "test" or "predict".
        options: what follows it.
        run: False only parses: no seeding, nothing built, nothing run.
    """

    def __init__(self, command: str, options: Sequence[str], run: bool = True) -> None:
        self.command = command
        self.parse_only = not run
        self.resumption: Resumption | None = None
        import_components()
        options, self.config_paths = resolve_configs(options)
        if command != "fit":
            options = [*model_of_checkpoint(options, self.config_paths), *options]
        strict = {"allow_abbrev": False}  # `--trainer.max_epoch=3` is a mistake, not max_epochs
        super().__init__(
            datamodule_class=EpisodeDataModule,
            save_config_kwargs={
                "overwrite": True,
                "config_filename": "config.yaml" if command == "fit" else f"config_{command}.yaml",
            },
            trainer_defaults={"default_root_dir": "runs"},
            parser_class=LDISParser,
            parser_kwargs={**strict, command: strict},
            args=[command, *options],
            auto_configure_optimizers=False,
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # Lightning's is static: it has all four
        """The one command of this command line, and the arguments of its method that the CLI fills in itself."""
        return {self.command: LightningCLI.subcommands()[self.command]}

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The seed, always a number: a run that cannot be repeated is of no use here."""
        parser.add_argument(
            "--seed_everything", type=int, default=0, help="Seed of the weights, the noise and the data."
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Our own arguments, and every value that is derived from another one."""
        parser.add_argument(
            "--score_after_fit", type=bool, default=False, help="At the end of fit, run test on the fitted weights."
        )
        parser.add_class_arguments(Sweep, "sweep", instantiate=False)
        parser.add_argument("--extends", type=str | None, help="In a config: the file beside it that it builds on.")
        parser.link_arguments("seed_everything", "data.seed")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse without Lightning's warning about `args` beside `sys.argv`: our dispatcher always passes them."""
        options = self._subcommand_parsers[self.command]
        files = {file: file.read_text("utf-8") for path in self.config_paths for file in with_parents(path)}
        for file in files:
            check_packages(read_mapping(file), file)
        keys = [action.dest for action in options._actions]
        for one in (parser, options):
            one.shorten = partial(explain, known_keys=keys, configs=files)  # type: ignore[attr-defined]
        self.config = parser.parse_args(args)  # type: ignore[arg-type]
        self.config[self.command].extends = None  # what is saved stands alone

    def _parse_ckpt_path(self) -> None:
        """Nothing: Lightning would let the hyper-parameters in the checkpoint override the command line."""

    def _set_seed(self) -> None:
        if not self.parse_only:
            super()._set_seed()

    def instantiate_classes(self) -> None:
        """Build model, data and Trainer, if they can work here. What goes wrong in a component is raised as it is."""
        if self.parse_only:
            return
        config = self.config[self.command]
        if config.get("ckpt_path") == LAST:
            self.resumption = resolve(config.trainer, to_train=self.command == "fit")
            config = config.clone()  # what is saved of the config says `last`
            config.ckpt_path = self._resumed_path()
        check(config)
        try:
            super().instantiate_classes()
        except ValueError as error:
            raise _unwrapped(error) from error

    def _resumed_path(self) -> str | None:
        found = self.resumption.checkpoint if self.resumption else None
        return str(found) if found else None

    def _run_subcommand(self, subcommand: str) -> None:
        if self.parse_only:
            return
        try:
            super()._run_subcommand(subcommand)
        except Stopped as stop:
            leave_together(self.trainer, self.datamodule, stop)
            raise
        except BaseException:
            self._end_launched()
            raise

    def _end_launched(self) -> None:
        """End the processes that Lightning has launched beside this one: they would wait for it for ever."""
        for process in getattr(self.trainer.strategy.launcher, "procs", ()):
            process.kill()

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        """Add what every run has, unless it is configured. Lightning's default progress bar draws nothing in a file."""
        configured = [*(config.get("callbacks") or []), *callbacks]
        has_bar = any(isinstance(callback, ProgressBar) for callback in configured)
        if not sys.stdout.isatty() and not has_bar and config.get("enable_progress_bar") is not False:
            callbacks = [*callbacks, TQDMProgressBar(refresh_rate=20)]
        if self.command == "fit" and not any(isinstance(callback, Preemption) for callback in configured):
            callbacks = [*callbacks, Preemption()]
        if self.command == "fit" and self.resumption:
            callbacks = [*callbacks, ContinueRun(self.resumption)]
        trainer = super()._instantiate_trainer(config, callbacks)
        trainer._signal_connector = PlainSignals(trainer)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        if self.command == "fit" and self.resumption and self.resumption.checkpoint:
            continue_in_folder(trainer, self.resumption)
        return trainer

    def after_fit(self) -> None:
        """Score the weights as they are after training, in the same process."""
        if self.config_init[self.command]["score_after_fit"]:
            self.trainer.test(self.model, datamodule=self.datamodule, verbose=not self._has_own_table())

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        """Lightning's table of a test says what ours says, at length; predictions go to files, not into memory; code in
        a checkpoint is not run."""
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        if self.resumption:
            kwargs["ckpt_path"] = self._resumed_path()
        if "weights_only" in kwargs:  # before Lightning 2.6, what `check` has seen of the checkpoint must do
            kwargs["weights_only"] = True
        if subcommand == "predict" and kwargs.get("return_predictions") is None:
            kwargs["return_predictions"] = False
        if subcommand == "test" and self._has_own_table():
            kwargs["verbose"] = False
        return kwargs

    def _has_own_table(self) -> bool:
        callbacks = self.trainer.callbacks  # type: ignore[attr-defined]
        return any(isinstance(callback, ResultTable) for callback in callbacks)


def parse_fit(options: Sequence[str]) -> tuple[LDISParser, Namespace]:
    """Parse a `fit` command line without running it.

    Returns:
        The parser of `fit`, with which more configs can be checked and written, and what it read.

    Raises:
        UserError: something in it is wrong.
    """
    cli = LDISCLI("fit", options, run=False)
    return cli._subcommand_parsers["fit"], cli.config["fit"]  # type: ignore[return-value]


def model_of_checkpoint(options: Sequence[str], configs: Sequence[Path]) -> list[str]:
    """The model of the run that a checkpoint is from, as options to put first, where no config or option names a model.

    A config of evaluation sets alone, such as `configs/benchmark.yaml`, can so be run on any checkpoint. The run's
    `config.yaml` lies beside the checkpoint or in the folder above.

    Raises:
        UserError: no model is named, and the run's config is not where it was written.
    """
    contents = [read_mapping(file) for path in configs for file in with_parents(path)]
    if any("class_path" in (content.get("model") or {}) for content in contents):
        return []
    if any(option.partition("=")[0] in ("--model", "--model.class_path") for option in options):
        return []
    following = dict(zip(options, [*options[1:], ""], strict=True))
    flags = dict(option.split("=", 1) for option in options if option.startswith("--ckpt_path="))
    checkpoint = flags.get("--ckpt_path") or following.get("--ckpt_path")
    if contents and not checkpoint:
        raise UserError(
            "no config names a model: add `--ckpt_path` with a checkpoint of a run, or the run's `--config`."
        )
    if not checkpoint or not Path(checkpoint).exists():
        return []
    places = [folder / "config.yaml" for folder in (Path(checkpoint).parent, Path(checkpoint).parent.parent)]
    saved = next((place for place in places if place.is_file()), None)
    if saved is None:
        raise UserError(
            f"no config names a model, and the run of {checkpoint} has left no {places[1]} to take it from: "
            "add the `--config` that it was trained with."
        )
    run = read_mapping(saved)
    kept = {"model": run.get("model"), "data": {"image_size": (run.get("data") or {}).get("image_size", 64)}}
    return ["--config", json.dumps(kept)]


def import_components() -> None:
    """Import all modules with components, so that configs can name their classes without a path."""
    for name in COMPONENTS:
        package = importlib.import_module(f"ldis_lightning.{name}")
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{package.__name__}.{module.name}")


def quieten() -> None:
    """Hide what Lightning and torch say about nothing that a user can change."""
    for pattern in NOISE:
        warnings.filterwarnings("ignore", message=pattern)
    for name in ("lightning.fabric.utilities.rank_zero", "lightning.pytorch.utilities.rank_zero"):
        logger = logging.getLogger(name)
        if _is_worth_saying not in logger.filters:
            logger.addFilter(_is_worth_saying)


def _is_worth_saying(record: logging.LogRecord) -> bool:
    return not record.getMessage().strip().startswith(TIPS)


def _unwrapped(error: BaseException) -> BaseException:
    """The error of a component, which jsonargparse wraps once for every union of types that the component lies in."""
    while error.__cause__ is not None and str(error).startswith("Does not validate against any of the Union"):
        error = error.__cause__
    return error

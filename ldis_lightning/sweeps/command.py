"""`ldis sweep`: run every point of a config's grid at every seed and print the table."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from ldis_lightning.command_line import Parser, at_least
from ldis_lightning.config_files import resolve_configs
from ldis_lightning.errors import UserError
from ldis_lightning.lightning_cli import parse_fit, quieten
from ldis_lightning.sweeps.estimate import estimates, print_estimates
from ldis_lightning.sweeps.execution import Ending, Execution
from ldis_lightning.sweeps.grid import Sweep
from ldis_lightning.sweeps.launchers import choice
from ldis_lightning.sweeps.plan import Plan, plan_sweep

DESCRIPTION = """Run every point of the `sweep:` block of a config at every seed, each as a plain `ldis fit` that scores
its weights at the end, and print the metric's mean and 95% interval. All points are checked before the first one runs.
Run the same command again to go on: points with results are not run again, half-done ones continue from their last
checkpoint, failed ones are run again with --retry. Every other option is one of `ldis fit` and changes the config of
all points, e.g. `--trainer.max_steps 10` or `--sweep.seeds '[0]'`."""
LAUNCHERS = """launchers:
  local      processes on this machine: --jobs, --threads_per_job, --gpus_per_job
  slurm      jobs of a Slurm cluster; Ctrl-C leaves them there, and the same command finds them again
    --slurm.partition P           partition (default: the cluster's)
    --slurm.timeout_min M         minutes until a run saves a checkpoint, goes back into the queue and on from there
                                  (default: the partition's limit)
    --slurm.gpus_per_node G       GPUs on each node of a run, at least one for each of its trainer.devices
    --slurm.cpus_per_task C       processors of each process
    --slurm.mem_gb M              gigabytes of memory on each node
    --slurm.array_parallelism N   runs of an array at a time (default: 256)
    --slurm.requeues N            how often a run may go back into the queue (default: 20)
    --slurm.additional '{K: V}'   further options of sbatch by their long names, e.g. '{account: vision}'
    --slurm.poll_seconds S        how often to ask Slurm (default: 10)
  my.Class   a subclass of ldis_lightning.sweeps.launchers.Launcher of your own: --launcher.KEY VALUE"""


def main(args: Sequence[str]) -> int:
    """Run `ldis sweep`.

    Returns:
        0, or 1 if a run failed, or 75 if nothing failed but something is left to do.

    Raises:
        UserError: the command line, the config or any point of its grid is wrong; then nothing has run. Or another
            sweep is at work in the folder.
    """
    options, rest = _parser().parse_known_args(args)
    quieten()
    launcher_options, fit_options = choice.split(rest, options.launcher)
    plan = _plan(fit_options, options.out)
    given = {key: getattr(options, key) for key in ("jobs", "threads_per_job", "gpus_per_job")}
    launcher = choice.build(options.launcher, launcher_options, given)
    launcher.folder = plan.out / "launcher"
    console = Console()
    if options.dry_run:
        print_estimates(console, plan, estimates(plan))
        return 0
    with Execution(plan, launcher, console, options.retry) as execution:
        ending = execution.run()
        _report(console, plan)
        return _status(console, ending)


def _plan(fit_options: Sequence[str], out: Path | None) -> Plan:
    _, configs = resolve_configs(fit_options)
    if not configs:
        raise UserError("`ldis sweep` needs `--config` and a config with a `sweep:` block")
    parser, base = parse_fit(fit_options)
    sweep = Sweep(**base.sweep.as_dict())
    return plan_sweep(parser, base, sweep, out or Path("runs/sweeps") / configs[0].stem)


def _parser() -> Parser:
    parser = Parser("ldis sweep", DESCRIPTION, LAUNCHERS)
    parser.add_argument("--out", type=Path, help="folder for all runs and the table (default: runs/sweeps/CONFIG)")
    parser.add_argument("--dry_run", action="store_true", help="check every point, say what it will cost, run nothing")
    parser.add_argument("--retry", action="store_true", help="run those again that have failed")
    parser.add_argument("--launcher", default="local", help="local, slurm, or a class path (default: local)")
    parser.add_argument("--jobs", type=at_least(1), help="local: runs at a time (default: 1)")
    parser.add_argument(
        "--threads_per_job", type=at_least(1), help="local: threads of each (default: the cores shared)"
    )
    parser.add_argument(
        "--gpus_per_job", type=at_least(0), help="local: GPUs of each (default: all, shared out; 0: none)"
    )
    return parser


def _report(console: Console, plan: Plan) -> None:
    """Write and print the answer, as far as runs are done."""
    if any(run.point is not None and run.is_done() for run in plan.runs):
        from ldis_lightning.sweeps.report import write

        write(plan.out).show(console)


def _status(console: Console, ending: Ending) -> int:
    """Say what is missing, and what to do about it."""
    for line in ending.lines():
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return ending.status

"""The command `fusecell`: train, info, selftest."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    args = build_parser().parse_args(argv)
    # Imported only now, so that one command does not wait for what another needs.
    module = importlib.import_module(f"fusecell.{args.command}")
    code: int = module.main(args)
    return code


def build_parser() -> argparse.ArgumentParser:
    """All options of all commands."""
    parser = argparse.ArgumentParser(prog="fusecell", description="Fused ConvLSTM kernels.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_train(commands)
    commands.add_parser("info", help="version, what was built in, CPU features, threads, GPUs found or why none")
    selftest = commands.add_parser("selftest", help="every op on every backend of this machine against the reference")
    selftest.add_argument("--backend", help="only this one: cpu, or cuda")
    return parser


def _add_train(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    train = commands.add_parser(
        "train",
        help="learn to predict the next frames of digits in motion, or of your own data",
        description="Train a stacked ConvLSTM (encoder and forecaster) to predict the next frames. "
        "Ctrl-C saves; --resume goes on bit for bit. Writes a loss curve, a strip and an animation.",
        argument_default=argparse.SUPPRESS,
    )
    _add_data_options(train.add_argument_group("data"))
    _add_network_options(train.add_argument_group("network and training"))
    run = train.add_argument_group("run")
    run.add_argument("--out", metavar="FOLDER", default=None, help="where to write (default: runs/digits)")
    run.add_argument("--resume", action="store_true", default=False, help="go on with the run in the folder")
    run.add_argument("--overwrite", action="store_true", default=False, help="replace the run in the folder")
    run.add_argument("--threads", type=int, metavar="N", default=None, help="(default: the cores it may use)")
    run.add_argument("--health", action="store_true", default=False, help="watch the gradients: report and heat map")
    run.add_argument("--check", action="store_true", default=False, help="exit with 1 unless the mark is reached")


def _add_data_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--data", metavar="FILE", help=".npy or .npz of [N, T, H, W] or [T, H, W], a GIF or a video (default: digits)"
    )
    group.add_argument("--axes", choices=["NTHW", "TNHW"], help="order of a 4-D array's axes (default: NTHW)")
    group.add_argument("--max-side", type=int, metavar="N", help="larger frames are averaged down (default: 64)")
    group.add_argument("--digits", type=int, metavar="N", help="digits per sequence")
    group.add_argument("--frame", type=int, metavar="N", help="side of the digits' frame in pixels")
    group.add_argument("--input-frames", type=int, metavar="N", help="frames that the network sees")
    group.add_argument("--horizon", type=int, metavar="N", help="frames that it predicts")


def _add_network_options(group: argparse._ArgumentGroup) -> None:
    length = group.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, metavar="N", help="training steps")
    length.add_argument("--epochs", type=float, metavar="N", default=None, help="instead of --steps, with --data")
    group.add_argument("--hidden", type=int, metavar="N", help="channels of each ConvLSTM")
    group.add_argument("--layers", type=int, metavar="N", help="ConvLSTMs in the encoder, and in the forecaster")
    group.add_argument("--kernel", type=int, metavar="N", help="side of their kernels")
    group.add_argument("--patch", type=int, metavar="N", help="side of the blocks of pixels that become channels")
    group.add_argument("--batch", type=int, metavar="N", help="sequences per step")
    group.add_argument("--lr", type=float, metavar="RATE", help="highest learning rate (Adam)")
    group.add_argument("--clip-norm", type=float, metavar="NORM", help="largest global norm of the gradient")
    group.add_argument("--seed", type=int, metavar="N", help="of the parameters and the training sequences")
    group.add_argument("--dtype", choices=["float32", "float64"], help="of all arithmetic")


if __name__ == "__main__":
    raise SystemExit(main())

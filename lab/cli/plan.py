"""`python -m lab plan`: what a preset will fetch, need and take."""

from collections.abc import Sequence

from lab.cli.options import command_parser, positive


def plan(arguments: Sequence[str]) -> int:
    parser = command_parser("plan", "Tell what a preset will fetch, need and take, without fetching anything.")
    parser.add_argument("--preset", default="embedded", metavar="NAME", help="embedded (default), small or paper")
    parser.add_argument("--only", nargs="+", default=[], metavar="SECTION", help="names (or their beginnings) of sections")
    parser.add_argument("--base", default="", metavar="DIR", help="another base: a folder with its config.json, best with its tokenizer")
    parser.add_argument("--data", default="", metavar="DIR", help="a folder with real data in place of the preset's")
    parser.add_argument("--full", action="store_true", help="with the seeds and problems of `results --full`")
    parser.add_argument("--tflops", type=positive, help="10^12 operations a second that the machine really reaches")
    parser.add_argument("--bandwidth", type=positive, help="10^9 bytes a second that it reads from its memory")
    options = parser.parse(arguments)
    from lab.runner.plan import plan as told

    print(told(options.preset, options.only, options.base, options.data, options.full, options.tflops, options.bandwidth))
    return 0

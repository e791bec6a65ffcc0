"""`python -m lab merge`: adapters by a static method, into an adapter or a base model."""

from collections.abc import Sequence
from dataclasses import replace

from lab.cli.options import (
    add_common,
    add_parameters,
    command_parser,
    load_all,
    number,
    padded,
    parameters_of,
    quiet,
    tell,
    whole,
)
from lab.errors import LabError


def merge(arguments: Sequence[str]) -> int:
    parser = command_parser(
        "merge",
        "Merge two or more LoRA adapters by a static method. The result is an ordinary PEFT folder with a model card;\n"
        "with --fold-into, a whole model.",
        "examples:\n"
        "  python -m lab merge maths/ code/ --method cat_static --weights 0.7 0.3 --out merged/\n"
        "  python -m lab merge maths/ code/ --method ties --density 0.3 --rank 32 --dtype bfloat16 --out merged/\n"
        "  python -m lab merge maths/ code/ --method cat_static --alphas 'code: 0.5; layers 0-5 q,v: maths 0.3' --out merged/\n"
        "  python -m lab merge m=runs/1/final c=runs/2/final --method tsv --fold-into owner/base --out model/\n\n"
        "python -m lab merge --method NAME --help tells a method's parameters; python -m lab methods lists them all.",
    )
    add_common(parser)
    parser.add_argument(
        "--weights", nargs="+", type=number, metavar="W", help="one per adapter (default: the method's, 1/k or 1)"
    )
    parser.add_argument(
        "--alphas", metavar="RULES",
        help="rules over the weights of cat_static, such as 'maths: 0.8; layers 0-5 q,v: maths 0.3; code mlp: late 0.2 1'",
    )
    parser.add_argument("--rank", type=whole, help="cut every module to this rank by SVD; what is lost is recorded")
    parser.add_argument(
        "--fold-into", metavar="BASE",
        help="add the merge to this base model (folder, Hub id, embedded), uncut unless --rank is given",
    )
    parser.add_argument("--base", help="the base's name to write down, instead of what the adapters state")
    method = add_parameters(parser, arguments)
    options = parser.parse(arguments)
    from tqdm import tqdm

    from lab import merging
    from lab.export.folders import check_free, export, fold_into
    from lab.export.report import check_several
    from lab.lora.base import check_base

    if options.fold_into and (options.pad_to_rank or options.fill_layers or options.gguf):
        raise LabError("A folded model is no adapter; leave out --pad-to-rank, --fill-layers and --gguf, or --fold-into.")
    padded(options.pad_to_rank, 1)  # a typing error should not wait for the merge
    check_free(options.out, options.overwrite)
    check_several(options.adapters)
    if options.fold_into:
        check_base(options.fold_into, folding=True)
    adapters, report = load_all(options.adapters, options.base)
    parameters = parameters_of(options)
    if options.fold_into and not options.rank:
        merged = merging.merge_full_rank(method.name, adapters, options.weights, alphas=options.alphas, **parameters)
    else:
        modules = len({module for adapter in adapters for module in adapter.modules})
        with tqdm(total=modules, desc=method.name, unit="module", disable=None) as bar:
            settings = {"alphas": options.alphas, "rank": options.rank, "on_module": lambda _: bar.update(), **parameters}
            merged = merging.merge(method.name, adapters, options.weights, **settings)
    if options.base:
        merged = replace(merged, base=options.base)
    if options.fold_into:
        quiet()
        fold_into(
            options.fold_into, merged, options.out, report=report, dtype=options.dtype, overwrite=options.overwrite
        )
    else:
        rank = padded(options.pad_to_rank, merged.rank)
        export(
            options.out, merged, report=report, dtype=options.dtype or "float32", pad_to_rank=rank,
            fill_layers=options.fill_layers, gguf=options.gguf, overwrite=options.overwrite,
        )  # fmt: skip
    tell(options.out, merged)
    return 0

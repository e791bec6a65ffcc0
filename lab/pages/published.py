"""The numbers that the paper prints, in one place: what it measured, with which settings, and where it says so.

Llama-7B, each task's whole test set. Figures that show bars without numbers (5, 6a, 8, 9, 10) are not read off.
"""

from dataclasses import dataclass

PAPER = "https://arxiv.org/abs/2410.13025"


@dataclass(frozen=True)
class Published:
    """A number of the paper, and what of a section's records stands for the same thing.

    value: as printed, in `unit`: "%" (of problems), "points" (per cent minus per cent), "% more" (relative), or "F1" (a
    fraction).
    methods: whose mean it is. over: the method that a difference or a relative gain is measured against. score: of the records.
    error: standard deviation over seeds, in `unit`. task: whose records count, where a section has several with real data.
    """

    what: str
    where: str
    value: float
    unit: str
    section: str
    methods: tuple[str, ...]
    over: str = ""
    score: str = "right"
    error: float | None = None
    task: str = ""


@dataclass(frozen=True)
class Setting:
    """A setting of the paper. field: of lab.experiments.presets.Preset, where it is one."""

    what: str
    where: str
    value: str
    field: str = ""


def _math_code(what: str, where: str, value: float, method: str, unit: str = "%", over: str = "", **more) -> Published:
    return Published(what, where, value, unit, "s5_1_math_code", (method,), over, **more)


def _closed_book(
    what: str, where: str, value: float, method: str, task: str, unit: str = "%", over: str = ""
) -> Published:
    return Published(what, where, value, unit, "s5_2_qabot", (method,), over, task=task)


def _bioasq(what: str, value: float, method: str) -> Published:
    return Published(what, "Table 2", value, "F1", "s5_3_reading", (method,), score="f1")


def _commonsense(what: str, methods: tuple[str, ...], *values: float) -> tuple[Published, ...]:
    sets = {"PIQA": "piqa", "SIQA": "social_i_qa", "HellaSwag": "hellaswag", "WinoGrande": "winogrande"}
    return tuple(
        Published(f"{name}: {what}", "Table 3", value, "%", "s5_4_prompt_formats_two_prompts", methods, score=score)
        for (name, score), value in zip(sets.items(), values, strict=True)
    )


GSM_HARD = "5.1 GSM-Hard, problems solved"
CLOSED_BOOK = "5.2 and C.2 Closed-book questions, as GPT-4 judged them"
BIOASQ = "5.3 and C.3 BioASQ, token F1"
COMMONSENSE = "C.4 Commonsense questions in two prompt versions"

NUMBERS = {
    GSM_HARD: (
        _math_code("base, 8 worked programs (PAL)", "Figure 4, Table 1", 5.91, "few_shot"),
        _math_code("math skill", "Figure 4, Table 1", 14.18, "maths"),
        _math_code("code skill", "Figure 4, Table 1", 8.04, "code"),
        _math_code("data-mix", "Figure 4, Section 5.1", 18.8, "data_mix"),
        _math_code("CAT", "Figure 4, Table 1", 21.11, "cat"),
        _math_code("CAT, mean of 3 seeds", "Appendix C.1", 21.63, "cat", error=1.07),
        _math_code("code skill, gain over the base", "Table 1", 36, "code", "% more", "few_shot"),
        _math_code("math skill, gain over the base", "Table 1", 140, "maths", "% more", "few_shot"),
        _math_code("CAT, gain over the base", "Table 1", 257, "cat", "% more", "few_shot"),
        _math_code("data-mix, gain over the math skill", "Section 5.1", 32, "data_mix", "% more", "maths"),
        _math_code("CAT, gain over data-mix", "Abstract", 12, "cat", "% more", "data_mix"),
        _math_code("learned minus static CAT", "Section 5.5, Figure 9", 2, "cat", "points", "cat_static"),
    ),
    CLOSED_BOOK: (
        _closed_book(
            "game manual: learned minus static CAT",
            "Section 5.5, Figure 9",
            8,
            "cat",
            "manual_qa",
            "points",
            "cat_static",
        ),
        _closed_book("biology chapter: instruction skill", "Appendix C.2", 43, "instruction", "biology_qa"),
        _closed_book("biology chapter: data-mix", "Appendix C.2", 54, "data_mix_continual", "biology_qa"),
    ),
    BIOASQ: (
        _bioasq("textbook skill, 5 worked examples", 0.041, "terms_few_shot"),
        _bioasq("SQuAD skill", 0.047, "extraction"),
        _bioasq("TIES", 0.04, "ties"),
        _bioasq("DARE", 0.037, "dare_linear"),
        _bioasq("MoE", 0.037, "moe"),
        _bioasq("data-mix", 0.044, "data_mix_continual"),
        _bioasq("CAT", 0.028, "cat"),
    ),
    COMMONSENSE: (
        *_commonsense("base", ("base",), 79.8, 48.9, 76.1, 70.1),
        *_commonsense("mean of the two prompts' skills", ("prompt_1", "prompt_2"), 74.59, 77.1, 81.85, 81.2),
        *_commonsense("data-mix", ("data_mix",), 82.65, 75.9, 78.81, 79.6),
        *_commonsense("CAT", ("cat",), 83.27, 78.8, 84.71, 80.43),
    ),
}

SETTINGS = (
    Setting("LoRA rank", "Appendix B.1", "32", "rank"),
    Setting("LoRA alpha", "Appendix B.1", "64", "lora_alpha"),
    Setting("LoRA dropout", "Appendix B.1", "0.05", "dropout"),
    Setting("target modules", "Appendix B.1", "q_proj, k_proj, v_proj, up_proj, down_proj", "targets"),
    Setting("epochs of a skill", "Appendix B.1", "3", "epochs"),
    Setting("data-mix of 5.2 and 5.3: epochs on the text, then on the questions", "Section 4", "3, then 1"),
    Setting("learning rate", "Appendix B.1", "0.0003", "learning_rate"),
    Setting("warm-up steps, then linear decay", "Appendix B.1", "100", "warmup"),
    Setting("batch", "Appendix B.1", "4 or 8", "batch_size"),
    Setting("gradient accumulation", "Appendix B.1", "4", "accumulation"),
    Setting("tokens of a row: 5.3; 5.2", "Appendix B.2", "2048; 20 or 100", "max_tokens"),
    Setting("worked examples before a question, merges and data-mix", "Appendix B.2", "1", "shots"),
    Setting("precision", "Appendix B.1", "float16", "dtype"),
    Setting("temperature", "Appendix B.1", "0.01", "temperature"),
    Setting("top-p", "Appendix B.1", "0.95", "top_p"),
    Setting("new tokens at most", "Appendix B.1", "200", "max_new_tokens"),
    Setting("coefficients: share of each skill's data", "Section 4", "0.05", "coefficient_share"),
    Setting("coefficients: epochs", "Section 4", "1", "coefficient_epochs"),
    Setting("coefficients: learning rate", "Section 4", "0.0001", "coefficient_rates"),
    Setting("TIES and DARE: density swept", "Appendix B.1", "0 to 1 in steps of 0.2"),
    Setting("TIES and DARE: weights swept", "Appendix B.1", "1 to 2 in steps of 0.2"),
    Setting("Elo: start, base, scale, K", "Appendix C.3", "200, 10, 400, 4"),
    Setting("Elo: bootstraps", "Appendix C.3", "5000"),
)


def scores(section: str, score: str = "right") -> dict[str, float]:
    """Method -> published fraction of a section, for `results.paper_and_measured`; of two numbers for one method the first."""
    found: dict[str, float] = {}
    for number in (n for group in NUMBERS.values() for n in group):
        if (
            number.section == section
            and number.score == score
            and len(number.methods) == 1
            and number.unit in ("%", "F1")
        ):
            found.setdefault(number.methods[0], number.value / 100 if number.unit == "%" else number.value)
    return found

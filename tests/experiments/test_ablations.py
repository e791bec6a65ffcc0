import pandas as pd
import pytest

from lab.errors import LabError
from lab.evaluation import evaluate
from lab.experiments import ablations, sections
from lab.experiments.context import RunContext
from lab.experiments.store import Store
from lab.lora.base import load_base
from lab.merging import merge
from lab.merging.learn import held_out_loss, split_held_out
from lab.pages import figures
from lab.records.record import make_record, save_record

SMALL = {"rank": 2, "lora_alpha": 4, "train_rows": 24, "coefficient_share": 0.5, "own_test": 2, "max_new_tokens": 4}
GRID = {"density": [0.0, 0.5], "weight maths": [1.0, 2.0], "weight code": [1.0]}


@pytest.fixture(scope="module")
def preset(tiny_base):
    return sections.MATH_CODE.preset("embedded", str(tiny_base), "", SMALL)


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory):
    return tmp_path_factory.mktemp("artifacts")


@pytest.fixture
def sweep(preset, artifacts, tmp_path):
    def run(method="ties_factors", grid=GRID, problems=3):
        return ablations.sweep(sections.MATH_CODE, preset, method, grid, 0, problems, out=tmp_path, artifacts=artifacts)

    return run


@pytest.fixture
def counted(monkeypatch):
    """How often models were asked."""
    calls = []
    monkeypatch.setattr(
        evaluate, "generate", lambda model, tokenizer, prompts, **_: calls.append(len(prompts)) or [""] * len(prompts)
    )
    return calls


def test_a_sweep_has_a_row_per_point_and_asks_equal_merges_once(sweep, counted, tmp_path):
    table = sweep()
    assert list(table.columns[:5]) == ["density", "weight maths", "weight code", "score", "low"]
    assert len(table) == 4 and (table["n"] == 3).all() and table["loss"].notna().all()
    assert counted == [3, 3, 3]  # nothing is kept at density 0, whatever the weights
    assert table["loss"][0] == table["loss"][1] and table["loss"][2] != table["loss"][3]
    assert len(list((tmp_path / "sweeps").iterdir())) == 1


def test_density_zero_is_the_base(sweep, counted, preset):
    table = sweep(grid={"density": [0.0], "weight maths": [1.0], "weight code": [1.0]})
    model, tokenizer = load_base(preset.base)
    context = RunContext(sections.MATH_CODE, preset, 0, None, model, tokenizer)
    _, held_out = split_held_out(context.coefficient_rows, 0)
    assert table["loss"][0] == pytest.approx(
        held_out_loss(model, held_out[: ablations.HELD_OUT_ROWS], tokenizer.pad_token_id), abs=1e-5
    )


def test_a_sweep_goes_on_where_it_was_and_takes_finer_grids(sweep, counted, monkeypatch):
    whole = ablations._score
    monkeypatch.setattr(ablations, "_score", lambda *a: whole(*a) if len(counted) < 2 else pytest.fail("interrupted"))
    with pytest.raises(pytest.fail.Exception):
        sweep()
    monkeypatch.setattr(ablations, "_score", whole)
    assert len(counted) == 2
    first = sweep()
    assert len(counted) == 3
    finer = sweep(grid={**GRID, "weight maths": [1.0, 1.5, 2.0]})
    assert len(counted) == 4 and len(finer) == 6
    pd.testing.assert_frame_equal(sweep(), first)
    sweep(problems=2)
    assert len(counted) == 7  # other problems are another sweep


def test_learned_points_take_their_rate_and_their_share(sweep, counted):
    grid = {
        "parametrisation": ["free"],
        "granularity": ["model"],
        "coefficient_share": [0.25, 0.5],
        "learning_rate": [0.01, 0.5],
    }
    table = sweep("cat", grid)
    assert len(set(table["loss"])) == 4 and table.attrs["pool"] == 0.5


def test_a_choice_becomes_the_same_merge(sweep, counted, preset, artifacts):
    table = sweep().assign(score=[0.0, 0.1, 0.2, 0.6], loss=[0.1, 2.0, 1.0, 3.0])
    table.attrs = {"method": "ties_factors", "section": "s5_1_math_code", "seed": 0, "pool": 0.5}
    chosen = ablations.choices(table)
    assert chosen["point"].tolist() == [3, 0] and chosen.loc[ablations.ORACLE, "weight maths"] == 2.0
    entries = ablations.confirm([table])
    assert set(entries) == {"ties_factors_oracle", "ties_factors_held_out"}
    context = RunContext(sections.MATH_CODE, preset, 0, Store(artifacts), *load_base(preset.base))
    adapter, _ = entries["ties_factors_oracle"].make(context).load()
    assert adapter.digest() == merge("ties_factors", context.skills, [2.0, 1.0], density=0.5).digest()
    text = ablations.choice_table([table])
    assert text["target, % (95 % interval)"].iloc[0].startswith("60.0 (") and text["points"].tolist() == ["4", "4"]


def test_panels_and_marks_meet(sweep, counted):
    table = sweep().assign(score=[0.0, 0.1, 0.2, 0.6], loss=[0.1, 2.0, 1.0, 3.0])
    table.attrs["method"] = "ties_factors"
    panels = ablations.panels(table, ["density"], "weight maths", "weight code")
    assert list(panels) == ["density 0", "density 0.5"] and panels["density 0.5"].at[2.0, 1.0] == pytest.approx(60)
    marks = ablations.marks(table, ["density"], "weight maths", "weight code")
    assert marks == {ablations.ORACLE: ("density 0.5", 2.0, 1.0), ablations.HONEST: ("density 0", 1.0, 1.0)}
    best = ablations.panels(table, ["weight code"], "weight maths", "weight code", value="loss")["weight code 1"]
    assert best.at[1.0, 1.0] == pytest.approx(0.1)  # the lowest over the densities


@pytest.mark.parametrize(
    ("method", "grid", "message"),
    [
        (
            "ties_factors",
            {"densty": [1.0]},
            "no 'densty'; choose density, majority_sign_method, weight maths, weight code",
        ),
        ("ties_factors", {"density": [1.5]}, "density is 1.5"),
        ("ties_factors", {"density": []}, "no values for density"),
        ("ties_factors", {"weight maths": [1.0]}, "one of every skill: weight maths, weight code"),
        ("cat", {"granularity": ["model"]}, "needs learning_rate"),
        ("moe", {"learning_rate": [0.1]}, "moe cannot be swept"),
        ("lorahub", {}, "lorahub cannot be swept"),
        ("tise", {}, "did you mean 'ties'"),
    ],
)
def test_a_wrong_grid_stops_before_anything_is_loaded(sweep, monkeypatch, method, grid, message):
    monkeypatch.setattr(ablations, "open_contexts", lambda *_, **__: pytest.fail("too late"))
    with pytest.raises(LabError, match=message):
        sweep(method, grid)


def test_a_damaged_sweep_is_named(sweep, counted, tmp_path):
    sweep()
    (file,) = (tmp_path / "sweeps").iterdir()
    file.write_text(file.read_text()[:-30])
    with pytest.raises(LabError, match="is damaged; delete it"):
        sweep()
    assert file.exists()


def run(method, seed, scores, section="s", **changes):
    blank = {
        "question": "", "group": "", "prompt": "", "targets": [], "metadata": {}, "completion": "", "extracted": "", "reason": "right",
        "extras": {},
    }  # fmt: skip
    rows = [{**blank, "id": str(i), "score": float(score)} for i, score in enumerate(scores)]
    parameters = {"preset": {"rank": 2, **changes}, "problems": len(rows)}
    record = make_record(
        rows, section=section, preset="p", method=method, seed=seed, task="t", task_version=1,
        key=f"{method}{seed}{changes}", parameters=parameters, hashes={"base": "b", "data": "d"},
    )  # fmt: skip
    return record, rows


@pytest.fixture
def saved(tmp_path):
    def save(*runs):
        return [save_record(record, rows, tmp_path) for record, rows in runs]

    return save


def test_learned_against_static_and_the_spread(saved):
    static = [run("cat_static", seed, [0, 0, 0, 0, 0, 0, 0, 1]) for seed in range(2)]
    records = saved(*static, run("cat", 0, [1, 1, 1, 1, 1, 1, 1, 0]), run("cat", 1, [1, 1, 1, 1, 1, 1, 0, 0]))
    table = ablations.learned_against_static({"s5_9_sums": records}, paper={"s5_9_sums": 2})
    row = table.loc[("5.9 sums", "CAT")]
    assert (
        row["paper, points"] == "+2"
        and "+68.8" in row["difference to Static CAT, points"]
        and row["n × seeds"] == "8 × 2"
    )
    spread = ablations.seed_spread(records, paper={"cat": "21.63 ± 1.07"})
    assert spread.loc["CAT", "mean ± sd over seeds, %"] == "81.25 ± 8.84"
    assert spread.loc["CAT", "paper, %"] == "21.63 ± 1.07" and spread.loc["Static CAT", "paper, %"] == ""
    table = pd.DataFrame({"density": [0.2, 0.4], "score": [0.5, 0.1], "loss": [2.0, 1.0]})
    table.attrs["method"] = "ties_factors"
    text = ablations.finding([table], {"s5_9_sums": records})
    assert text.startswith("5.9 sums: learned CAT is +68.8 points (") and text.endswith(
        "of 2 settings of TIES on factors the best on the target scores 50.0 %, the one with the lowest held-out loss "
        "10.0 %."
    )
    asked = saved(run("ties_factors_oracle", 0, [1, 0, 0, 0]), run("ties_factors_oracle", 1, [0, 0, 0, 0]))
    assert "the best on the target scores 12.5 % on the whole test (50.0 % in the sweep), the one with" in ablations.finding(
        [table], {"s5_9_sums": records}, asked
    )


def test_companions_are_runs_of_the_same_kind(saved, tmp_path):
    own = saved(run("cat", 0, [1, 0], data="world"))
    saved(
        run("new_lora", 0, [1, 1], data={"maths": "world"}),  # the same data, named in another way
        run("ties", 0, [1, 1]),
        run("ties", 1, [1, 1]),
        run("svd", 0, [1, 1, 1]),
        run("knots", 0, [1, 1], rank=4),
        run("base", 0, [0, 0], "other"),
    )
    (tmp_path / "s" / "cut.json").write_text("{")
    with pytest.warns(UserWarning, match="cut.json"):  # a companion might be missing
        assert [r.method for r in ablations.companions(own, tmp_path)] == ["cat", "new_lora", "ties"]


def test_figures_mark_the_choices():
    table = pd.DataFrame({"score": [0.5, 0.1], "loss": [2.0, 1.0]})
    chart = figures.loss_against_score({"TIES": table}, {"best": {"TIES": 0}, "lowest": {"TIES": 1}})
    assert "TIES, best: loss 2.000, target 50 %" in chart.alt
    frame = pd.DataFrame([[1.0, float("nan")], [3.0, 4.0]], index=[0, 1], columns=[0.2, 0.4])
    chart = figures.heatmaps({"a": frame, "b": 2 * frame}, "score", "Sweep", marks={"best": ("b", 1, 0.4)})
    assert "best: b, 1, 0.4" in chart.alt and len(figures.svg(chart)) < 40_000

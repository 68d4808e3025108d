"""The command line, as a user meets it."""

import json
import re
import shutil
import socket
import subprocess
import sys
import urllib.request
from functools import partial
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from chiaroscuro import ChiarConfig, cli, tables
from chiaroscuro.analysis import sample
from chiaroscuro.modeling import ChiarForCausalLM
from chiaroscuro.training import TrainingPlan
from tests.helpers import free_port

pytestmark = pytest.mark.usefixtures("cache")

SMALL = ["--steps", "6", "--batch-size", "4", "--seq-len", "33", "--vocab-size", "300"]
SMALL += ["--hidden-size", "32", "--heads", "2", "--layers", "5"]


@pytest.fixture(scope="module")
def trained(english, tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A run and what the command that made it printed."""
    out = tmp_path_factory.mktemp("runs") / "run"
    command = [sys.executable, "-m", "chiaroscuro", "train", "--data", str(english), "--out", str(out), *SMALL]
    return out, subprocess.run([*command, "--json"], check=True, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def run(trained) -> Path:
    return trained[0]


@pytest.fixture
def call(monkeypatch, capsys):
    """Run the command with arguments; gives exit code, standard output and standard error."""

    def run_command(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["chiaroscuro", *map(str, arguments)])
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 0
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run_command


def test_train_leaves_a_run_folder(run):
    assert json.loads((run / "results.json").read_text())["recipe"] == "chiar"


def test_standard_output_holds_results_only(trained):
    run, printed = trained
    assert json.loads(printed.stdout) == json.loads((run / "results.json").read_text())
    assert "6/6 steps" in printed.stderr


def test_eval_agrees_with_the_results_of_the_run(call, run):
    code, out, _ = call("eval", run, "--json")
    assert code == 0
    assert json.loads(out)["perplexity"] == pytest.approx(json.loads((run / "results.json").read_text())["perplexity"])


def test_eval_takes_another_file_whole(call, run, tmp_path):
    (tmp_path / "other.txt").write_text("a first part\n\n" * 60 + "quite another one\n\n" * 60)
    (tmp_path / "end.txt").write_text("quite another one\n\n" * 60)
    found = {}
    for name in ("other", "end"):
        code, out, _ = call("eval", run, "--data", tmp_path / f"{name}.txt", "--json")
        assert code == 0
        found[name] = json.loads(out)
    assert found["other"]["tokens"] > 1.7 * found["end"]["tokens"]


def test_generate_goes_on_from_the_prompt_the_same_way_each_time(call, run):
    first, again = (call("generate", run, "The import statement", "--tokens", 12)[1] for _ in range(2))
    assert first.startswith("The import statement")
    assert len(first) > len("The import statement\n")
    assert first == again
    assert call("generate", run, "The", "--temperature", 0)[0] == 0


def test_route_shows_layers_and_writes_json_and_a_picture(call, run, tmp_path):
    code, out, _ = call("route", run, "for x in y", "--png", tmp_path / "route.png")
    assert code == 0
    assert "layer 1: none 100% (no choice)" in out
    assert (tmp_path / "route.png").read_bytes().startswith(b"\x89PNG")
    routed = json.loads(call("route", run, "for x in y", "--json")[1])
    assert "".join(routed["tokens"]) == "for x in y"
    assert routed["layers"][3]["operators"] == ["none", "attention"]


def test_tokens_writes_its_figures_and_a_picture(call, run, tmp_path):
    code, out, _ = call("tokens", run, "--windows", 4, "--pairs", 2, "--out", tmp_path / "tokens")
    assert code == 0
    assert "open word" in out
    assert "entropy, benefit: " in out
    found = json.loads((tmp_path / "tokens" / "tokens.json").read_text())
    assert found["tokens"] == 4 * 32
    assert found["run"]["recipe"] == "chiar"
    assert (tmp_path / "tokens" / "tokens.png").read_bytes().startswith(b"\x89PNG")


def test_tokens_of_another_text_are_as_frequent_as_in_training(call, run, tmp_path, monkeypatch):
    counted = []
    monkeypatch.setattr(
        "chiaroscuro.analysis.sample", lambda *arguments: counted.append(arguments[2]) or sample(*arguments)
    )
    (tmp_path / "other.txt").write_text("the zebra of the zebra\n\n" * 200)
    for options in ((), ("--data", tmp_path / "other.txt")):
        assert call("tokens", run, "--windows", 4, "--pairs", 2, "--json", *options)[0] == 0
    assert np.array_equal(*counted)
    unknown = shutil.copytree(run, tmp_path / "unknown")
    (unknown / "results.json").unlink()
    code, _, err = call("tokens", unknown, "--data", tmp_path / "other.txt")
    assert code == 2
    assert "tokens counts in the text of the run's training how frequent each is" in err


def test_calibrate_sets_and_saves_thresholds(call, run, tmp_path):
    run = shutil.copytree(run, tmp_path / "run")
    other = tmp_path / "other.txt"
    other.write_text(" ".join(str(7919 * number % 10_000) for number in range(6000)))
    model = ChiarForCausalLM.from_pretrained(run, routed_share=0.5)  # to keep to which takes a threshold
    model.save_pretrained(run)
    before = model.state_dict()
    code, out, _ = call("calibrate", run, "--data", other, "--json")
    assert code == 0
    layers = json.loads(out)["layers"]
    after = ChiarForCausalLM.from_pretrained(run).state_dict()
    assert [layer["layer"] for layer in layers] == [3]
    for layer in layers:
        name = f"model.layers.{layer['layer']}.mixer.router.thresholds"
        assert after[name].tolist() == pytest.approx([layer["low"], layer["high"]])
        assert after[name].tolist() != pytest.approx(before[name].tolist(), abs=1e-4)
    assert "calibrate" in json.loads((run / "results.json").read_text())["calibrated"]["versions"]["command"]


def test_convert_makes_a_folder_that_loads(call, tmp_path):
    checkpoint = Path(__file__).parent / "fixtures" / "checkpoint.pt"
    assert call("convert", checkpoint, tmp_path / "out")[0] == 0
    assert ChiarForCausalLM.from_pretrained(tmp_path / "out").config.meta_router == "paper"


def test_compare_trains_both_and_shows_what_to_try_next(call, english, tmp_path):
    code, out, _ = call("compare", "--data", english, "--steps", 2, "--out", tmp_path / "both")
    assert code == 0
    for shown in ("perplexity", "bits per byte", "all FLOPs, executed", "training seconds", "tokens per second"):
        assert shown in out
    assert out.count("  chiaroscuro ") == 3
    assert (tmp_path / "both" / "routing.png").read_bytes().startswith(b"\x89PNG")
    logs = [json.loads(line) for line in (tmp_path / "both" / "chiar" / "metrics.jsonl").read_text().splitlines()]
    assert max(log.get("learning_rate", 0.0) for log in logs) == 4e-3  # it rises no longer than the run is


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["train", "--task", "recall", "--data", "absent.txt"], "task 'recall' is generated and takes no data"),
        (["train", "--mix", "listops_flat=absent"], "task 'listops_flat' is generated and takes no data"),
        (["train", "--recipe", "chair"], "unknown recipe 'chair'; known recipes: chiar, full_attention"),
        (
            ["train", "--task", "juggling"],
            "unknown task 'juggling'; known tasks: lm, recall, imdb, listops, listops_flat",
        ),
        (["train", "--data", "absent.txt"], "no data at 'absent.txt'"),
        (["train", "--data", "EMPTY"], "is empty"),
        (["train", "--data", "BINARY"], "not UTF-8"),
        (["train", "--data", "SHORT", "--vocab-size", "300"], "fewer than one window"),
        (
            ["train", "--data", "ENGLISH", "--vocab-size", "300", "--recipe", "v1_dct_attention", "--seq-len", "300"],
            "longer than the 256",
        ),
        (["train", "--data", "ENGLISH", "--vocab-size", "300", "--heads", "3"], "does not divide into 3"),
        (["train", "--data", "ENGLISH", "--vocab-size", "300", "--out", "TAKEN"], "exists already"),
        (["train", "--resume"], "--resume needs --out"),
        (["compare", "--resume"], "--resume needs --out"),
        (["compare", "--resume", "--out", "TAKEN", "--data", "ENGLISH"], "nothing to resume"),
        (["train", "--data", "ENGLISH", "--field", "router"], "--field takes NAME=VALUE, got 'router'"),
        (["train", "--data", "ENGLISH", "--field", "rooter=1"], "unknown field of the configuration: rooter"),
        (["train", "--task", "listops"], "expressions of listops have up to 2000 tokens"),
        (["train", "--task", "imdb", "--data", "TAKEN"], "train.jsonl or train.jsonl.gz is missing"),
        (["study", "vast"], "unknown study 'vast'; known studies: smoke, controls, vocabulary, ablation"),
        (["study", "smoke", "--processes", "0"], "--processes must be at least 1"),
        (["train", "--resume", "--out", "TAKEN", "--data", "ENGLISH", "--vocab-size", "300"], "nothing to resume"),
        (["compare", "--against", "chiar"], "nothing to compare"),
        (["train", "--resume", "--out", "RUN", "--data", "ENGLISH", "--steps", "7"], "was started by another plan"),
        (["train", "--data", "ENGLISH", "--lr", "nan"], "learning_rate must be positive, got nan"),
        (["train", "--data", "ENGLISH", "--seed", "-1"], "seed must lie in [0, 2^32), got -1"),
        (["eval", "absent"], "no run folder at absent"),
        (["app", "absent"], "no run folder at absent"),
        (["report", "--results", "absent"], "no results at absent"),
        (
            ["audit", "chiar", "--data", "BINARY"],
            "--data is encoded with the tokenizer of a run, and chiar is a recipe",
        ),
        (["bench", "op", "--length", "0"], "length must be at least 1, got 0"),
        (["bench", "layer", "--length", "8", "--heads", "0"], "heads must be at least 1, got 0"),
        (["bench", "layer", "--hidden-size", "64"], "sizes go with --length"),
        (["bench", "op", "--length", "8", "--layers", "2"], "--layers is of models, and op is a part of one layer"),
        (["eval", "TAKEN"], "is not a run folder: config.json is missing"),
        (["eval", "RUN", "--split", "all"], "unknown split 'all'; known splits: train, validation, test"),
        (["generate", "RUN", ""], "the prompt is empty"),
        (["generate", "RUN", "a", "--tokens", "9000"], "9000 more are wanted; the model takes at most 8192"),
        (["route", "RUN", ""], "the text is empty"),
        (["tokens", "RUN", "--out", "EMPTY"], "EMPTY"),
        (["bench", "op", "--length", "8", "--hidden-size", "30"], "does not divide into 8 heads"),
        (["bench", "op", "--plot", "plot.png"], "--plot needs --length"),
        (["bench", "op", "--length", "8", "--plot", "plot.png"], "--plot needs --length, more than once"),
        (
            ["bench", "op", "--length", "8", "--length", "16", "--plot", "plot.foo"],
            ", not plot.foo",
        ),
        (["bench", "op", "--length", "8", "--out", "absent/op.json"], "no folder absent to write op.json into"),
        (["bench", "op", "--length", "1"], "a length of 1 has no half"),
        (["generate", "RUN", "not \udcff text"], "surrogates not allowed"),
        (["route", "RUN", "not \udcff text"], "surrogates not allowed"),
        (["route", "RUN", "text", "--by", "loss"], "--by is for the page that --html writes"),
        (["study", "recall", "--data", "ENGLISH"], "task 'recall' is generated and takes no data"),
        (["train", "--task", "recall", "--tokenizer", "TAKEN"], "takes no --tokenizer"),
        (["train", "--task", "recall", "--eval-tokens", "9"], "only a language model is measured on a part"),
        (["train", "--mix", "chess"], "unknown further task 'chess'; known ones: imdb, listops, listops_flat"),
        (["convert", "TAKEN", "out"], "not a readable checkpoint (Is a directory)"),
        (["convert", "EMPTY", "out"], "not a readable checkpoint"),
        (["convert", "absent.pt", "out"], "absent.pt"),
    ],
)
def test_bad_input_is_told_in_one_line(call, run, english, tmp_path, monkeypatch, arguments, complaint):
    (tmp_path / "EMPTY").touch()
    (tmp_path / "BINARY").write_bytes(bytes(range(256)))
    (tmp_path / "SHORT").write_text("a few words.\n\n" * 4)
    (tmp_path / "TAKEN").mkdir()
    (tmp_path / "TAKEN" / "precious.txt").write_text("keep me")
    places = {name: tmp_path / name for name in ("EMPTY", "BINARY", "SHORT", "TAKEN")} | {
        "ENGLISH": english,
        "RUN": run,
    }
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    code, out, err = call(*(places.get(argument, argument) for argument in arguments))
    assert code == 2
    assert complaint in err
    assert err.count("\n") == 1
    assert not out
    assert sorted(tmp_path.rglob("*")) == before


def test_reports_of_other_tasks_stand_side_by_side():
    console = Console(file=StringIO(), width=80)
    console.print(tables.runs({"mixed": {"tasks": {"imdb": 0.5}}, "alone": {"loss": 1.0}}))
    (line,) = [line for line in console.file.getvalue().splitlines() if "accuracy, imdb" in line]
    assert [cell.strip() for cell in line.split("│")] == ["", "accuracy, imdb", "50.00%", "", ""]


def test_names_with_brackets_are_shown_as_they_are():
    console = Console(file=StringIO(), width=80)
    for table in (tables.findings([], "run[old]"), tables.runs({"q[/x]": {"loss": 1.0}}, "data[/b].txt")):
        console.print(table)
    shown = console.file.getvalue()
    assert all(name in shown for name in ("run[old]", "q[/x]", "data[/b].txt"))


def test_a_recipe_with_sizes_of_its_own_keeps_them_unless_told(call, english, tmp_path):
    short = ("--data", english, "--vocab-size", "300", "--steps", "1", "--batch-size", "1", "--seq-len", "17", "--json")
    sizes = {}
    for name, more in (("v1_dct_attention", ()), ("v1_full_attention", ("--hidden-size", "32")), ("chiar", ())):
        code, _, _ = call("train", "--recipe", name, *short, *more, "--out", tmp_path / name)
        assert code == 0
        config = ChiarConfig.from_pretrained(tmp_path / name)
        sizes[name] = (config.hidden_size, config.num_hidden_layers)
    assert sizes == {"v1_dct_attention": (256, 4), "v1_full_attention": (32, 4), "chiar": (128, 5)}


def test_any_field_of_the_configuration_may_be_given(call, english, tmp_path):
    short = ("--data", english, "--vocab-size", "300", "--steps", "1", "--batch-size", "1", "--seq-len", "17")
    operators = ("--field", 'layer_operators=[["none"], ["dct", "attention"]]', "--field", "routed_share=0.25")
    sizes = ("--hidden-size", 32, "--field", "router=random")
    assert call("train", *short, *sizes, *operators, "--out", tmp_path / "run")[0] == 0
    config = ChiarConfig.from_pretrained(tmp_path / "run")
    assert config.layer_operators == [["none"], ["dct", "attention"]]
    assert (config.router, config.routed_share, config.hidden_size) == ("random", 0.25, 32)


def test_a_recipe_of_the_paper_is_compared_with_the_baseline_of_the_paper(call, english, tmp_path):
    code, out, _ = call(
        *("compare", "--recipe", "v2", "--data", english, "--steps", 1, "--lr", 0.001),
        *("--out", tmp_path / "two", "--json"),
    )
    assert code == 0
    runs = json.loads(out)["runs"]
    assert list(runs) == ["v2", "v2_full_attention"]
    assert {run["plan"]["learning_rate"] for run in runs.values()} == {0.001}


@pytest.mark.parametrize("command", [each.name or each.callback.__name__ for each in cli.app.registered_commands])
def test_help_ends_in_an_example_of_the_command(call, command):
    code, out, _ = call(command, "--help")
    assert code == 0
    assert f"Example: chiaroscuro {command} " in out


def test_audit_passes_a_run_and_names_what_fails(call, run, tmp_path):
    code, out, _ = call("audit", run)
    assert code == 0
    assert "FAILS" not in out
    code, out, _ = call("audit", run, "--json")
    assert {each["check"]: each["holds"] for each in json.loads(out) if each["holds"] is not True} == {
        "thresholds are calibrated": None,  # of which the recipe has none, nor a share
        "no operator starves": None,
    }
    broken = tmp_path / "broken"
    shutil.copytree(run, broken)
    with pytest.warns(UserWarning, match="its logits leak"):
        # Its weights lack a MetaRouter, which therefore starts as it starts in training.
        ChiarForCausalLM.from_pretrained(run, meta_router="paper").save_pretrained(broken)
    with pytest.warns(UserWarning, match="its logits leak"):
        code, out, _ = call("audit", broken)
    assert code == 1
    assert re.search(r"no output depends on later\s*│ FAILS", out)


def test_eval_with_a_stride_says_so_and_is_refused_for_a_bad_one(call, run):
    code, out, _ = call("eval", run, "--stride", 8, "--json")
    assert code == 0
    found = json.loads(out)
    assert (found["window"], found["stride"]) == (33, 8)
    whole = json.loads(call("eval", run, "--json")[1])
    assert found["perplexity"] == pytest.approx(whole["perplexity"], rel=0.1)
    assert found["perplexity"] != whole["perplexity"]
    code, _, error = call("eval", run, "--stride", 33)
    assert code == 2
    assert "stride must be at least 1 and less than the window of 33 tokens" in error


def test_route_writes_a_page(call, run, tmp_path):
    code, _, _ = call("route", run, "a <b>", "--html", tmp_path / "route.html", "--by", "loss")
    assert code == 0
    assert "highest loss" in (tmp_path / "route.html").read_text()
    code, _, err = call("route", run, "a", "--html", tmp_path / "route.html", "--by", "luck")
    assert code == 2
    assert "unknown colouring 'luck'; known: operator, entropy, loss" in err


def test_plot_writes_the_figures_of_a_run(call, run, tmp_path):
    code, out, _ = call("plot", run, "--out", tmp_path / "figures")
    assert code == 0
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert names == {"loss.png", "shares.png", "utilisation.png", "entropies.png"}
    assert all(name in out for name in names)


def test_app_without_a_run_trains_one_and_says_so(call, english, tmp_path, monkeypatch):
    tiny = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
    small = partial(TrainingPlan, data=str(english), vocab_size=300, steps=2, batch_size=2, seq_len=17, fields=tiny)
    launched = []
    monkeypatch.setattr("chiaroscuro.training.TrainingPlan", small)

    def launch(page, **options):
        launched.append((page.config, options))
        return None, "the address", None

    monkeypatch.setattr("gradio.Blocks.launch", launch)
    monkeypatch.chdir(tmp_path)
    code, out, err = call("app", "--port", free_port())
    assert code == 0, err
    assert "No run given and none found: training a small one" in out
    assert "The page: the address" in out
    ((page, options),) = launched
    assert (tmp_path / "runs" / "demo-1" / "results.json").is_file()
    assert "a small model was trained on Shakespeare's plays: runs/demo-1." in json.dumps(page)
    assert options["server_name"] == "127.0.0.1"


def test_app_on_a_port_that_is_taken_names_another_way_and_no_address(call, run):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, out, err = call("app", run, "--port", port)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert f"cannot listen on 127.0.0.1, port {port}" in err
    assert err.endswith("choose another --port\n")


def test_app_serves_the_last_run_and_says_so(run, tmp_path):
    shutil.copytree(run, tmp_path / "runs" / "one")
    port = free_port()
    command = [sys.executable, "-m", "chiaroscuro", "app", "--port", str(port)]
    server = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    try:
        told = server.stdout.readline()
        assert f"Showing the last run found, runs/one. The page: http://127.0.0.1:{port}" in told
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/config") as answer:  # at once: it listens by then
            assert "Showing the last run found, runs/one." in answer.read().decode()
    finally:
        server.terminate()
        server.wait(30)

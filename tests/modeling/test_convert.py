"""The authors' checkpoint gives the authors' numbers."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.helpers import Hostile

from chiaroscuro.modeling.convert import convert

FIXTURES = Path(__file__).parent.parent / "fixtures"
pytestmark = pytest.mark.filterwarnings("ignore:meta_router='paper'")


@pytest.fixture(scope="module")
def expected():
    return np.load(FIXTURES / "expected.npz")


@pytest.mark.parametrize("dispatch", ["dense", "sparse"])
def test_logits_entropies_choices_and_gate_are_reproduced(expected, dispatch):
    model = convert(FIXTURES / "checkpoint.pt")
    for layer in model.model.layers:
        layer.mixer.dispatch = dispatch
    output = model(torch.from_numpy(expected["input_ids"]), output_routing=True)
    torch.testing.assert_close(output.logits, torch.from_numpy(expected["logits"]), atol=1e-6, rtol=0)
    assert [trace.layer for trace in output.routing] == [1, 2]
    for trace in output.routing:
        entropy = torch.from_numpy(expected[f"entropy_{trace.layer}"])
        torch.testing.assert_close(trace.entropy, entropy, atol=1e-6, rtol=0)
        assert torch.equal(trace.choice, torch.from_numpy(expected[f"operator_{trace.layer}"]))
    assert float(output.meta_gate) == pytest.approx(float(expected["meta_gate"]), abs=1e-6)


def test_a_saved_conversion_keeps_the_numbers(expected, tmp_path):
    model = convert(FIXTURES / "checkpoint.pt")
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert loaded.dtype == torch.float64
    logits = loaded(torch.from_numpy(expected["input_ids"])).logits
    torch.testing.assert_close(logits, torch.from_numpy(expected["logits"]), atol=1e-6, rtol=0)


def test_a_checkpoint_that_would_run_code_is_refused_and_runs_none(tmp_path):
    torch.save({"model": Hostile(tmp_path / "ran"), "cfg": {}}, tmp_path / "hostile.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Hostile(tmp_path / "ran")))
    for name in ("hostile.pt", "plain.pt"):
        with pytest.raises(ValueError, match="not a readable checkpoint"):
            convert(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_what_is_not_such_a_checkpoint_is_refused(tmp_path):
    (tmp_path / "text.pt").write_text("not a checkpoint")
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        convert(tmp_path / "text.pt")
    torch.save({"weights": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="does not hold the entries"):
        convert(tmp_path / "other.pt")


@pytest.mark.parametrize("change", ["lose a weight", "add a weight", "lose a setting", "reshape a weight"])
def test_a_checkpoint_with_something_amiss_is_refused(tmp_path, change):
    content = torch.load(FIXTURES / "checkpoint.pt", weights_only=True)
    if change == "lose a weight":
        del content["model"]["layers.2.attn.out_proj.bias"]
    elif change == "add a weight":
        content["model"]["layers.2.rbf.gamma"] = torch.zeros(1)
    elif change == "lose a setting":
        del content["cfg"]["d_model"]
    else:
        content["model"]["norm.weight"] = torch.zeros(3)
    torch.save(content, tmp_path / "amiss.pt")
    with pytest.raises(ValueError, match=r"amiss\.pt"):
        convert(tmp_path / "amiss.pt")


@pytest.mark.parametrize("share", [0.0, 1e-6, 1e-4, 0.01, 0.5, 0.9, 0.999, 0.999999])
def test_a_file_cut_off_anywhere_is_refused(tmp_path, share):
    content = (FIXTURES / "checkpoint.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        convert(tmp_path / "cut.pt")


@pytest.mark.parametrize("content", [b"\x80", b"\x80\x02.", b"\x80\x02h\x05.", b"\x80\x02X\x05"])
def test_a_pickle_that_breaks_off_or_refers_to_nothing_is_refused(tmp_path, content):
    (tmp_path / "broken.pt").write_bytes(content)
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        convert(tmp_path / "broken.pt")


def altered(tmp_path, settings=None, **weights):
    """The authors' checkpoint with other settings, or some weights replaced."""
    content = torch.load(FIXTURES / "checkpoint.pt", weights_only=True)
    content["cfg"] = content["cfg"] | (settings or {})
    content["model"] |= {name.replace("__", "."): weight for name, weight in weights.items()}
    torch.save(content, tmp_path / "altered.pt")
    return tmp_path / "altered.pt"


@pytest.mark.parametrize("setting", ["d_model", "n_layers", "dropout", "rope_base"])
def test_settings_that_are_no_numbers_are_refused(tmp_path, setting):
    with pytest.raises(ValueError, match=r"altered\.pt"):
        convert(altered(tmp_path, {setting: None}))


@pytest.mark.parametrize("name", ["lm_head__weight", "rbf_mix__gamma"])
def test_a_weight_that_has_no_place_in_the_model_is_refused(tmp_path, name):
    """An output head of its own, when ours is tied to the embedding, or a module we do not know."""
    with pytest.raises(ValueError, match=r"altered\.pt"):
        convert(altered(tmp_path, **{name: torch.randn(97, 64, dtype=torch.float64)}))


def test_the_thresholds_of_a_half_precision_checkpoint_are_not_rounded(tmp_path):
    content = torch.load(FIXTURES / "checkpoint.pt", weights_only=True)
    half = {name.replace(".", "__"): weight.bfloat16() for name, weight in content["model"].items()}
    router = convert(altered(tmp_path, **half)).model.layers[1].mixer.router
    assert router.thresholds.tolist() == pytest.approx([0.8002, 0.8286], abs=1e-6)

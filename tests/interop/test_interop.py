"""Conversion: converted files give the numbers of their programs, transformers computes ours from what we write, refusals are one line."""

import json
import os
import pickle
import shutil
import struct
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from igpt_jax import convert, features
from igpt_jax.extras import install
from igpt_jax.interop import huggingface, weights
from igpt_jax.model import objectives
from igpt_jax.model.transformer import rms_norm
from igpt_jax.palette.palette import Palette
from igpt_jax.sampling import complete, generate
from igpt_jax.training import checkpoints, evaluation
from tests import runs
from tests.model import test_transformer
from tests.models import from_openai, random_model, tiny, to_nested

TOLERANCE = test_transformer.ORACLE_TOLERANCE
COLOURS = np.random.default_rng(5).uniform(-1, 1, (16, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def palette(tmp_path_factory):
    path = tmp_path_factory.mktemp("palette") / "kmeans_centers.npy"
    Palette(COLOURS).save(path)
    return path


@pytest.fixture
def tensorflow():
    return pytest.importorskip("tensorflow", reason="needs the extra `convert`: TensorFlow reads TensorFlow's checkpoints")


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="needs torch: it reads pytorch_model.bin")


@pytest.fixture
def transformers(torch):
    return pytest.importorskip("transformers", reason="needs transformers: it reads what to-hf writes")


def run(*arguments):
    convert._main([str(argument) for argument in arguments])


def refusal(*arguments) -> str:
    """The one line with which the command refuses."""
    with pytest.raises(SystemExit) as stopped:
        run(*arguments)
    assert isinstance(stopped.value.code, str) and stopped.value.code.startswith("error: ") and "\n" not in stopped.value.code
    return stopped.value.code


def copied(source, destination):
    """A writable copy of a file or folder."""
    if source.is_dir():
        shutil.copytree(source, destination, copy_function=shutil.copyfile)
        os.chmod(destination, 0o755)
    else:
        shutil.copyfile(source, destination)
    return destination


def same_parameters(model, expected):
    for ours, theirs in zip(jax.tree.leaves(model), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["openai_ar", "openai_bert"])
def test_converted_openai_model_gives_every_number_of_the_original(name, oracles, palette, tmp_path, tensorflow):
    run("openai", oracles / name, tmp_path / "out", f"--palette={palette}", "--heads=4")
    converted = checkpoints.load(tmp_path / "out")
    objective = "autoregressive" if name == "openai_ar" else "bert"
    assert converted.model_config == tiny(objective=objective, classes=10) and converted.step == 1 and converted.config["data"]["view"] == "imagenet"
    np.testing.assert_array_equal(converted.palette.centers, COLOURS)
    original = converted.model, dict(np.load(oracles / name / "expected.npz")), oracles / name
    test_transformer.test_every_output_agrees_with_the_original_program(original)
    test_transformer.test_losses_and_gradients_agree_with_the_original_program(original)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["openai_ar", "openai_bert"])
def test_shards_optimizer_slots_and_a_missing_class_head_change_no_parameter(name, oracles, palette, tmp_path, tensorflow):
    expected = dict(np.load(oracles / name / "expected.npz"))
    config = tiny(objective="autoregressive" if name == "openai_ar" else "bert")
    for folder, classes in (("sharded/model.ckpt-1", 10), ("noclf", 0)):
        run("openai", oracles / name / folder, tmp_path / folder, f"--palette={palette}")
        same_parameters(checkpoints.load(tmp_path / folder).model, from_openai(expected, tiny(objective=config.objective, classes=classes)))


@pytest.mark.slow
def test_64_shards_read_as_one_and_a_lost_one_is_named(tmp_path, palette, oracles, tensorflow):
    expected = dict(np.load(oracles / "openai_ar" / "expected.npz"))
    prefix = _write_tensorflow(tensorflow, tmp_path / "many", {k: v for k, v in expected.items() if k.startswith("model/")}, shards=64)
    assert len(list((tmp_path / "many").glob("*.data-*-of-00064"))) == 64
    copied(palette, tmp_path / "many" / "kmeans_centers.npy")  # found beside the checkpoint
    run("openai", prefix, tmp_path / "out")
    converted = checkpoints.load(tmp_path / "out")
    assert converted.step == 1000000
    same_parameters(converted.model, from_openai(expected, tiny(classes=10)))
    (tmp_path / "many" / "model.ckpt-1000000.data-00017-of-00064").unlink()
    assert "lacks 1 of 64 shards: model.ckpt-1000000.data-00017-of-00064" in refusal("openai", tmp_path / "many", tmp_path / "again")


@pytest.mark.slow
def test_openai_refusals_name_what_is_wrong_and_leave_nothing(oracles, palette, tmp_path, tensorflow):
    source, out, with_palette = oracles / "openai_ar", tmp_path / "out", f"--palette={palette}"
    assert "--heads=8, but" in refusal("openai", source, out, with_palette, "--heads=8")
    assert "the checkpoint has no palette: give --palette=" in refusal("openai", source, out)
    Palette(COLOURS[:8]).save(tmp_path / "small.npy")
    assert "the palette has 8 colours, the model 16" in refusal("openai", source, out, f"--palette={tmp_path / 'small.npy'}")
    assert "model.ckpt-2.index does not exist" in refusal("openai", source / "model.ckpt-2", out, with_palette)
    assert "one file *.index, it holds none" in refusal("openai", tmp_path, out, with_palette)
    arrays = {k: v for k, v in np.load(source / "expected.npz").items() if k.startswith("model/")}
    gpt2 = {"model/wte": arrays["model/wte"], "model/h0/attn/c_attn/w": np.zeros((1, 32, 96), np.float32)}
    gpt2 = _write_tensorflow(tensorflow, tmp_path / "gpt2", gpt2)
    assert "is no Image GPT: it lacks model/wpe, model/h0/attn/q_proj" in refusal("openai", gpt2, out, with_palette)
    wrong = {k: v for k, v in arrays.items() if k != "model/h1/ln_2/g"}
    wrong |= {"model/h2/mlp/c_fc/w": np.zeros((32, 64), np.float32), "model/h0/mlp/c_fc/b": np.zeros(128, np.float32)}
    message = refusal("openai", _write_tensorflow(tensorflow, tmp_path / "wrong", wrong), out, with_palette)
    assert "missing model/h1/ln_2/g; unexpected model/h0/mlp/c_fc/b; wrong shape model/h2/mlp/c_fc/w [32, 64] instead of" in message
    assert {entry.name for entry in tmp_path.iterdir()} == {"small.npy", "gpt2", "wrong"}


@pytest.mark.slow
@pytest.mark.parametrize("part", ["model.ckpt-1.index", "model.ckpt-1.data-00000-of-00001"])
def test_damaged_tensorflow_files_are_told_in_one_line(part, oracles, palette, tmp_path, tensorflow):
    folder = copied(oracles / "openai_ar" / "noclf", tmp_path / "source")
    whole = (folder / part).read_bytes()
    (folder / part).write_bytes(whole[: len(whole) // 2])
    message = refusal("openai", folder, tmp_path / "out", f"--palette={palette}")
    assert "cannot be read, it is damaged or no TensorFlow checkpoint" in message
    assert not (tmp_path / "out").exists()


def _write_tensorflow(tf, folder, arrays, shards=1):
    """Write arrays, and what an optimizer leaves beside them, as TensorFlow does; one variable in turn to each shard."""
    folder.mkdir()
    prefix = folder / "model.ckpt-1000000"
    arrays = arrays | {"global_step": np.int64(1000000), "beta1_power": np.float32(0.9)}
    arrays |= {"model/wte/Adam": np.zeros_like(arrays["model/wte"])}
    parts = [{} for _ in range(shards)]
    for number, (name, array) in enumerate(arrays.items()):
        parts[number % shards][name] = array
    prefixes = []
    for number, part in enumerate(parts):
        part = part or {f"padding/{number}": np.zeros(1, np.float32)}
        prefixes.append(str(folder / f"part-{number}"))
        tensors = [tf.constant(array) for array in part.values()]
        tf.raw_ops.SaveV2(prefix=prefixes[-1], tensor_names=list(part), shape_and_slices=[""] * len(part), tensors=tensors)
    tf.raw_ops.MergeV2Checkpoints(checkpoint_prefixes=prefixes, destination_prefix=str(prefix), delete_old_dirs=False)
    return prefix


@pytest.mark.parametrize("folder", ["causal", "legacy_4.26_causal"])
def test_converted_hf_causal_model_gives_transformers_numbers(folder, oracles, palette, tmp_path, request):
    _needs_reader(folder, request)
    run("hf", oracles / "hf" / folder, tmp_path / "out", f"--palette={palette}")
    model, expected = checkpoints.load(tmp_path / "out").model, np.load(oracles / "hf" / "expected.npz")
    assert model.config == tiny()
    output = model(expected["x"], hidden=True)
    np.testing.assert_allclose(output.logits, expected["logits_sos"], atol=TOLERANCE)
    hidden = output.hidden.at[-1].set(rms_norm(output.hidden[-1], model.final_norm[...]))  # transformers' last one is normalised
    np.testing.assert_allclose(hidden.swapaxes(0, 1), expected["hidden_states_sos"], atol=TOLERANCE)


def test_converted_hf_model_completes_as_transformers_token_by_token(oracles, palette, tmp_path):
    _needs_reader("causal", None)
    run("hf", oracles / "hf" / "causal", tmp_path / "out", f"--palette={palette}")
    model, expected = checkpoints.load(tmp_path / "out").model, np.load(oracles / "hf" / "expected.npz")
    for prompt, wanted in ((np.zeros((1, 0), int), "greedy_from_sos"), (expected["x"][:, :32], "greedy_from_half")):
        codes = generate.sample_codes(model, prompt, jax.random.key(0), temperature=0.0)
        np.testing.assert_array_equal(codes[:, 0], expected[wanted])


@pytest.mark.parametrize("folder", ["classification", "legacy_4.26_classification"])
def test_converted_hf_classifier_gives_transformers_numbers(folder, oracles, palette, tmp_path, request, capsys):
    _needs_reader(folder, request)
    run("hf", oracles / "hf" / folder, tmp_path / "out", f"--palette={palette}")
    assert "has no lm_head, so the output matrix is zero" in capsys.readouterr().err
    model, expected = checkpoints.load(tmp_path / "out").model, np.load(oracles / "hf" / "expected.npz")
    np.testing.assert_allclose(model(expected["x"]).class_logits, expected["clf_logits_sos"], atol=TOLERANCE)
    assert not np.asarray(model.output_embedding[...]).any()


@pytest.fixture(scope="module")
def biased(oracles, palette, tmp_path_factory):
    """Models with biases, converted: (folder of causal/ and classification/, transformers' numbers, transformers' gradients)."""
    pytest.importorskip("safetensors", reason="needs the extra `convert`")
    folder = tmp_path_factory.mktemp("biased")
    for name in ("causal", "classification"):
        run("hf", oracles / "hf_bias" / name, folder / name, f"--palette={palette}")
    return folder, dict(np.load(oracles / "hf_bias" / "expected.npz")), dict(np.load(oracles / "hf_bias" / "grads.npz"))


def test_a_model_with_biases_gives_transformers_numbers(biased):
    folder, expected, _ = biased
    model, classifier = (checkpoints.load(folder / name).model for name in ("causal", "classification"))
    assert (model.config, classifier.config) == (tiny(bias=True), tiny(bias=True, classes=10))
    output = model(expected["x"], hidden=True, cache=True)
    np.testing.assert_allclose(output.logits, expected["logits_sos"], atol=TOLERANCE)
    hidden = output.hidden.at[-1].set(rms_norm(output.hidden[-1], model.final_norm[...]))  # transformers' last one is normalised
    np.testing.assert_allclose(hidden.swapaxes(0, 1), expected["hidden_states_sos"], atol=TOLERANCE)
    present = np.stack(output.cache, axis=2).transpose(1, 0, 2, 4, 3, 5)  # [L, B, 2, S, N, K] -> [B, L, 2, N, S, K]
    np.testing.assert_allclose(present, expected["present_sos"], atol=TOLERANCE)
    np.testing.assert_allclose(classifier(expected["x"]).class_logits, expected["clf_logits_sos"], atol=TOLERANCE)


def test_losses_and_gradients_of_a_model_with_biases_are_those_of_transformers(biased):
    folder, expected, gradients = biased
    for name, kind, loss_name, loss_of in (
        ("causal", "gen_loss_openai", "gen_loss_openai_alignment", lambda model: objectives.next_pixel_loss(model(expected["x"]).logits, expected["x"]).mean()),
        ("classification", "clf_loss_sos", "clf_loss_sos", lambda m: objectives.classification_loss(m(expected["x"]).class_logits, expected["y"]).mean()),
    ):
        model = checkpoints.load(folder / name).model
        loss, gradient = jax.value_and_grad(loss_of)(model)
        assert float(loss) == pytest.approx(float(expected[loss_name]), abs=TOLERANCE)
        theirs = {key.removeprefix(f"{kind}/"): array for key, array in gradients.items() if key.startswith(f"{kind}/")}
        arrays = weights.Arrays(kind, {key: array.shape for key, array in theirs.items()}, theirs.__getitem__)
        wanted = checkpoints.from_nested(huggingface._read(arrays, model.config, "transformer."), model)
        for ours, right in zip(jax.tree.leaves(gradient), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(ours, right, atol=2e-5 * float(np.abs(right).max()) + 1e-12)


def test_a_model_with_biases_completes_as_transformers_token_by_token(biased):
    folder, expected, _ = biased
    model = checkpoints.load(folder / "causal").model
    for prompt, wanted in ((np.zeros((1, 0), int), "greedy_from_sos"), (expected["x"][:, :32], "greedy_from_half")):
        np.testing.assert_array_equal(generate.sample_codes(model, prompt, jax.random.key(0), temperature=0.0)[:, 0], expected[wanted])


@pytest.mark.parametrize("name", ["causal", "classification"])
def test_biases_go_back_to_transformers_bit_for_bit(name, biased, oracles, tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy", reason="needs the extra `convert`")
    run("to-hf", biased[0] / name, tmp_path / "hf", *(["--classification"] if name == "classification" else []))
    theirs, ours = (safetensors.load_file(folder / "model.safetensors") for folder in (oracles / "hf_bias" / name, tmp_path / "hf"))
    assert theirs.keys() == ours.keys() and sum(key.endswith(".bias") for key in ours) == 12
    for key, array in theirs.items():
        np.testing.assert_array_equal(ours[key], array)


def test_a_single_bias_that_is_not_zero_gives_a_model_with_biases(oracles, palette, tmp_path, capsys):
    """Of the last layer's last one, in a folder whose other biases are zero. Those of zero alone give the paper's model."""
    safetensors = pytest.importorskip("safetensors.numpy", reason="needs the extra `convert`")
    folder = _hf_folder(tmp_path / "source", oracles)
    arrays = safetensors.load_file(oracles / "hf" / "causal" / "model.safetensors")
    arrays["transformer.h.2.mlp.c_proj.bias"] = np.eye(32, dtype=np.float32)[31] * 1e-30
    safetensors.save_file(arrays, folder / "model.safetensors", metadata={"format": "pt"})
    run("hf", folder, tmp_path / "out", f"--palette={palette}")
    assert "1 biases of" in capsys.readouterr().err
    model = checkpoints.load(tmp_path / "out").model
    assert model.config.bias and model.blocks.mlp_out_bias[...][2, 31] == np.float32(1e-30) and np.count_nonzero(model.blocks.mlp_out_bias[...]) == 1
    assert not np.asarray(model.blocks.query_key_value_bias[...]).any()


@pytest.mark.slow
def test_a_model_that_was_trained_one_step_in_transformers_converts(oracles, palette, tmp_path, transformers, torch):
    """One step of AdamW moves every bias away from zero; then in, to transformers again, and equal logits each time."""
    theirs = transformers.ImageGPTForCausalImageModeling.from_pretrained(oracles / "hf" / "causal").train()
    codes = np.asarray(test_transformer.CODES)
    inputs = torch.tensor(np.concatenate([np.full((len(codes), 1), 16), codes[:, :-1]], axis=1))
    torch.nn.functional.cross_entropy(theirs(input_ids=inputs).logits.reshape(-1, 16), torch.tensor(codes).reshape(-1).long()).backward()
    torch.optim.AdamW(theirs.parameters(), lr=1e-2).step()
    theirs.save_pretrained(tmp_path / "trained")
    run("hf", tmp_path / "trained", tmp_path / "ours", f"--palette={palette}")
    run("to-hf", tmp_path / "ours", tmp_path / "back")
    again = transformers.ImageGPTForCausalImageModeling.from_pretrained(tmp_path / "back")
    with torch.no_grad():
        wanted, found = (model.eval()(input_ids=inputs).logits.numpy() for model in (theirs, again))
    model = checkpoints.load(tmp_path / "ours").model
    assert all(np.all(np.abs(array) > 1e-3) for name, array in to_nested(model)["blocks"].items() if name in ("mlp_in_bias", "mlp_out_bias"))
    np.testing.assert_allclose(model(codes).logits, wanted, atol=TOLERANCE)
    np.testing.assert_array_equal(found, wanted)


def test_base_model_half_precision_and_shards_read_the_same(oracles, tmp_path):
    """ImageGPTModel has no prefix and no head; a folder may hold several files, its palette and 16-bit numbers."""
    safetensors = pytest.importorskip("safetensors.numpy", reason="needs the extra `convert`")
    arrays = {k: v.astype(jax.numpy.bfloat16) for k, v in safetensors.load_file(oracles / "hf" / "causal" / "model.safetensors").items()}
    base = {name.removeprefix("transformer."): array for name, array in arrays.items() if name != "lm_head.weight"}
    folder = _hf_folder(tmp_path / "base", oracles, architectures=["ImageGPTModel"])
    (folder / "preprocessor_config.json").write_text(json.dumps({"clusters": COLOURS.tolist()}))
    names = sorted(base)
    weight_map = {name: f"model-0000{1 + (number % 2)}-of-00002.safetensors" for number, name in enumerate(names)}
    for file in set(weight_map.values()):
        safetensors.save_file({name: base[name] for name in names if weight_map[name] == file}, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    run("hf", folder, tmp_path / "out")
    converted = checkpoints.load(tmp_path / "out")
    np.testing.assert_array_equal(converted.palette.centers, COLOURS)
    assert not np.asarray(converted.model.output_embedding[...]).any()
    np.testing.assert_array_equal(converted.model.start_vector[...], base["wte.weight"][-1].astype(np.float32))
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert "model-00002-of-00002.safetensors" in refusal("hf", folder, tmp_path / "again")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, "a model of type 'gpt2', expected 'imagegpt'"),
        ({"activation_function": "gelu_new"}, "activation_function 'gelu_new' instead of 'quick_gelu'"),
        ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon 1e-06 instead of 1e-05"),
        ({"scale_attn_weights": False}, "scale_attn_weights False instead of True"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx True instead of False"),
        ({"reorder_and_upcast_attn": True}, "reorder_and_upcast_attn True instead of False"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings True instead of False"),
        ({"add_cross_attention": True}, "add_cross_attention True instead of False"),
        ({"n_inner": 64}, "n_inner 64 instead of 128"),
        ({"architectures": ["GPT2LMHeadModel"]}, "architecture GPT2LMHeadModel, none of"),
        ({"architectures": ["ImageGPTForImageClassification"]}, "lacks score.weight"),
        ({"n_layer": 4}, "missing transformer.h.3.ln_1.weight"),
        ({"n_layer": 2}, "unexpected transformer.h.2."),
        ({"n_positions": 256}, "transformer.wpe.weight [64, 32] instead of [256, 32]"),
        ({"n_head": 5}, "width 32 is not divisible by 5 heads"),
        ({"vocab_size": 513}, "lm_head.weight [16, 32] instead of [512, 32]"),
    ],
)
def test_hf_refusals_name_what_is_wrong(changes, message, oracles, palette, tmp_path):
    _needs_reader("causal", None)
    folder = _hf_folder(tmp_path / "source", oracles, **changes)
    copied(oracles / "hf" / "causal" / "model.safetensors", folder / "model.safetensors")
    assert message in refusal("hf", folder, tmp_path / "out", f"--palette={palette}")
    assert not (tmp_path / "out").exists()


def test_a_truncated_safetensors_file_a_wrong_palette_and_a_used_destination_are_refused(oracles, palette, tmp_path):
    _needs_reader("causal", None)
    folder = _hf_folder(tmp_path / "source", oracles)
    whole = (oracles / "hf" / "causal" / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:100000])
    assert "100000 bytes, is cut off or no safetensors file" in refusal("hf", folder, tmp_path / "out", f"--palette={palette}")
    assert "preprocessor_config.json has no clusters" in refusal("hf", folder, tmp_path / "out")
    (folder / "model.safetensors").write_bytes(whole)
    Palette(COLOURS[:8]).save(tmp_path / "small.npy")
    assert "the palette has 8 colours, the model 16" in refusal("hf", folder, tmp_path / "out", f"--palette={tmp_path / 'small.npy'}")
    (folder / "preprocessor_config.json").write_text('{"clusters": [[0, 0]]}')
    assert "clusters in" in (message := refusal("hf", folder, tmp_path / "out")) and "got [1, 2]" in message
    assert "DST must be a local folder, not gs://bucket/out" in refusal("hf", folder, "gs://bucket/out", f"--palette={palette}")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    assert "exists and is not an empty folder" in refusal("hf", folder, tmp_path / "out", f"--palette={palette}")
    (tmp_path / "out" / "mine").unlink()
    run("hf", folder, tmp_path / "out", f"--palette={palette}")
    assert {entry.name for entry in tmp_path.iterdir()} == {"source", "small.npy", "out"}


class _Code:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_a_bin_file_with_code_is_refused_and_not_run(oracles, palette, tmp_path, torch):
    folder = _hf_folder(tmp_path / "source", oracles)
    tensors = torch.load(oracles / "hf" / "legacy_4.26_causal" / "pytorch_model.bin", weights_only=True)
    code = _Code(tmp_path / "run")
    torch.save(tensors | {"code": code}, folder / "pytorch_model.bin")
    message = refusal("hf", folder, tmp_path / "out", f"--palette={palette}")
    assert "pytorch_model.bin is refused: it holds code, posix.system, none of which was run" in message
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"code": code}))
    message = refusal("hf", folder, tmp_path / "out", f"--palette={palette}")
    assert "pytorch_model.bin is refused: it is damaged, or holds code, none of which was run" in message
    assert not (tmp_path / "run").exists() and not (tmp_path / "out").exists()
    torch.save([1, 2], folder / "pytorch_model.bin")
    assert "does not hold arrays by name" in refusal("hf", folder, tmp_path / "out", f"--palette={palette}")
    torch.save({name: tensor.to(torch.int8) for name, tensor in tensors.items()}, folder / "pytorch_model.bin")
    assert "is int8, expected floating-point numbers" in refusal("hf", folder, tmp_path / "out", f"--palette={palette}")


def _hf_folder(path, oracles, **changes):
    """A folder with the oracle's config.json, changed, and no weights."""
    path.mkdir()
    (path / "config.json").write_text(json.dumps(json.loads((oracles / "hf" / "causal" / "config.json").read_text()) | changes))
    return path


def _needs_reader(folder, request):
    if folder.startswith("legacy"):
        request.getfixturevalue("torch")
    else:
        pytest.importorskip("safetensors", reason="needs the extra `convert`")


@pytest.fixture
def ours(tmp_path):
    """A checkpoint of ours with a class head and biases: (folder, its model)."""
    model = random_model(tiny(classes=10, bias=True))
    checkpoints.save_model(tmp_path / "ours", model, Palette(COLOURS), {"loss": {}, "data": {}})
    return tmp_path / "ours", model


@pytest.mark.slow
def test_transformers_reads_what_is_written_and_computes_the_same(ours, tmp_path, transformers, torch, capsys):
    folder, model = ours
    run("to-hf", folder, tmp_path / "causal")
    assert "ImageGPTForCausalImageModeling has no class head: it is left out" in capsys.readouterr().err
    run("to-hf", folder, tmp_path / "classification", "--classification")
    codes = np.asarray(test_transformer.CODES)
    inputs = torch.tensor(np.concatenate([np.full((len(codes), 1), 16), codes[:, :-1]], axis=1))
    expected = model(codes)
    for name, wanted in (("causal", expected.logits), ("classification", expected.class_logits)):
        theirs, info = getattr(transformers, _class_of(name)).from_pretrained(tmp_path / name, output_loading_info=True)
        assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        with torch.no_grad():
            logits = theirs.eval()(input_ids=inputs).logits.numpy()
        np.testing.assert_allclose(logits, wanted, atol=TOLERANCE)


@pytest.mark.slow
def test_the_processor_gives_the_palettes_codes(ours, oracles, tmp_path, transformers):
    run("to-hf", ours[0], tmp_path / "hf")
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "hf")
    stored = np.load(oracles / "processor" / "expected.npz")
    for number in range(6):
        image = Image.fromarray(stored[f"image_{number}"])
        ids = np.asarray(processor(image)["input_ids"]).reshape(-1)
        resized = np.asarray(image.resize((8, 8), Image.Resampling.BILINEAR))
        np.testing.assert_array_equal(ids, Palette(COLOURS).encode(resized).reshape(-1))


def test_where_transformers_sees_other_squares_it_is_said(ours, tmp_path, capsys):
    pytest.importorskip("safetensors", reason="needs the extra `convert`")
    run("to-hf", ours[0], tmp_path / "hf")
    assert "this model was trained with the view center_square, transformers squashes pictures to 8 x 8" in capsys.readouterr().err
    run("hf", tmp_path / "hf", tmp_path / "back")
    assert checkpoints.load(tmp_path / "back").config["data"]["view"] == "squash"
    run("to-hf", tmp_path / "back", tmp_path / "again")
    assert "view" not in capsys.readouterr().err


def test_there_and_back_is_the_same_model(ours, tmp_path):
    safetensors = pytest.importorskip("safetensors", reason="needs the extra `convert`")
    folder, model = ours
    for name, flags in (("causal", []), ("classification", ["--classification"])):
        run("to-hf", folder, tmp_path / name, *flags)
        with safetensors.safe_open(tmp_path / name / "model.safetensors", "numpy") as file:
            assert file.metadata() == {"format": "pt"}  # transformers before 5 refuses a file without it
        run("hf", tmp_path / name, tmp_path / f"{name}-back")
        back = checkpoints.load(tmp_path / f"{name}-back")
        np.testing.assert_array_equal(back.palette.centers, COLOURS)
        wanted = to_nested(model)
        lost = wanted.pop("class_embedding") if name == "causal" else wanted.pop("output_embedding")
        parameters = to_nested(back.model)
        assert lost.any() and ("class_embedding" in parameters) == (name == "classification")
        for path, array in jax.tree_util.tree_leaves_with_path(wanted):
            np.testing.assert_array_equal(array, dict(jax.tree_util.tree_leaves_with_path(parameters))[path])


def test_the_names_of_the_classes_go_there_and_come_back(tmp_path):
    pytest.importorskip("safetensors", reason="needs the extra `convert`")
    for number, (names, written) in enumerate((
        (("caf\u00e9", "dog", "7"), ["caf\u00e9", "dog", "7"]),
        ((0, 1, 2), ["LABEL_0", "LABEL_1", "LABEL_2"]),  # the data had numbers
        (None, ["LABEL_0", "LABEL_1", "LABEL_2"]),
    )):  # fmt: skip
        checkpoints.save_model(tmp_path / f"ours {number}", random_model(tiny(classes=3)), Palette(COLOURS), {}, class_names=names)
        run("to-hf", tmp_path / f"ours {number}", tmp_path / f"hf {number}", "--classification")
        settings = json.loads((tmp_path / f"hf {number}" / "config.json").read_text())
        assert settings["id2label"] == {"0": written[0], "1": written[1], "2": written[2]}
        assert settings["label2id"] == {name: i for i, name in enumerate(written)}
        run("hf", tmp_path / f"hf {number}", tmp_path / f"back {number}")
        run("to-hf", tmp_path / f"back {number}", tmp_path / f"hf again {number}", "--classification")  # a model that names no data
        assert json.loads((tmp_path / f"hf again {number}" / "config.json").read_text())["id2label"] == settings["id2label"]
        back = checkpoints.load(tmp_path / f"back {number}")
        assert back.class_names == (names if number == 0 else None) and not back.model_config.bias  # those that are written are zero
    path = tmp_path / "hf 0" / "config.json"
    path.write_text(json.dumps(settings | {"id2label": {"0": "cat", "2": "dog"}}))
    assert "config.json names 2 classes, 0, 2, and the class head has 3, from 0 on" in refusal("hf", tmp_path / "hf 0", tmp_path / "out")


def test_what_transformers_cannot_express_is_refused(tmp_path):
    pytest.importorskip("safetensors", reason="needs the extra `convert`")
    for name, config, message in (
        ("bert", tiny(objective="bert"), "a bert model cannot be written for transformers"),
        ("options", tiny(qk_norm=True, activation="swiglu"), "transformers' ImageGPT has no qk_norm True, activation 'swiglu'"),
        ("plain", tiny(), "--classification needs a class head"),
        ("middle", tiny(classes=10, class_layer=1), "reads layer 1, transformers' reads the last, 3"),
    ):
        checkpoints.save_model(tmp_path / name, random_model(config), Palette(COLOURS), {})
        assert message in refusal("to-hf", tmp_path / name, tmp_path / "hf", "--classification")
    assert "does not exist" in refusal("to-hf", tmp_path / "nothing", tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


def _class_of(name):
    return huggingface._architecture(name == "classification")


def test_a_converted_model_works_in_every_program(ours, tmp_path):
    pytest.importorskip("safetensors", reason="needs the extra `convert`")
    run("to-hf", ours[0], tmp_path / "hf")
    run("hf", tmp_path / "hf", tmp_path / "out")
    result = evaluation.evaluate_checkpoint(tmp_path / "out", "test", "digits")
    assert result["images"] > 100 and result["nats_per_pixel"] > 0
    assert features.main([f"--checkpoint={tmp_path / 'out'}", f"--out={tmp_path / 'features'}", "--data=digits", "--splits=test"]) == 0
    made = complete.complete(checkpoints.load(tmp_path / "out"), [np.zeros((20, 30, 3), np.uint8)], completions=2)
    assert made.pictures.shape == (1, 2, 8, 8, 3)
    with pytest.raises(ValueError, match="this checkpoint names no data"):
        evaluation.evaluate_checkpoint(tmp_path / "out")


def test_a_failed_write_leaves_nothing(ours, tmp_path, monkeypatch):
    pytest.importorskip("safetensors", reason="needs the extra `convert`")

    def full(_):
        raise OSError("no space left on device")

    monkeypatch.setattr(huggingface, "_processor", full)
    assert "no space left" in refusal("to-hf", ours[0], tmp_path / "hf")
    assert {entry.name for entry in tmp_path.iterdir()} == {"ours"}


def test_a_missing_library_says_how_to_install_it(oracles, palette, tmp_path, monkeypatch):
    wanted = {"tensorflow": install("convert"), "safetensors": "pip install safetensors"}
    for library, command in (("tensorflow", ("openai", oracles / "openai_ar")), ("safetensors", ("hf", oracles / "hf" / "causal"))):
        monkeypatch.setitem(sys.modules, library, None)
        assert wanted[library] in refusal(*command, tmp_path / "out", f"--palette={palette}")


def test_the_command_exits_with_1_and_one_line(tmp_path):
    code, out, error = runs.call("convert", "hf", tmp_path / "nothing", tmp_path / "out")
    assert (code, out, error.count("\n")) == (1, "", 1)
    assert "config.json does not exist" in error


def test_a_header_that_lies_is_refused(oracles, palette, tmp_path):
    _needs_reader("causal", None)
    folder = _hf_folder(tmp_path / "source", oracles)
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 60) + b"{}")
    assert "is cut off or no safetensors file" in refusal("hf", folder, tmp_path / "out", f"--palette={palette}")

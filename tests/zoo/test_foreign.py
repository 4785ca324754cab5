"""PyTorch weights in networks of the zoo."""

import builtins
import pickle
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from foliax.zoo.foreign import load_torch
from foliax.zoo.named import circle_net, colour_cnn, vgg, xor_net
from foliax.zoo.nets import CNN, MLP


def _digits():
    return MLP((64, 48, 10), rngs=nnx.Rngs(1))


def _weights(arrays):
    return {key[2:]: value for key, value in arrays.items() if key.startswith("w.")}


def test_mlp_has_the_reference_logits(reference):
    arrays = reference("digits_mlp_relu")
    model = load_torch(_digits(), arrays)
    logits = jax.jit(jax.vmap(model))(jnp.asarray(arrays["x"], jnp.float32))
    np.testing.assert_allclose(logits, arrays["logits"], atol=1e-5)


def test_cnn_has_the_reference_logits(reference):
    arrays = reference("own/fmnist_medium_cnn_a")
    model = load_torch(unset(partial(CNN, (28, 28, 1), 10)), arrays)
    images = np.moveaxis(arrays["x"], 1, -1).astype(np.float32)
    np.testing.assert_allclose(jax.jit(jax.vmap(model))(images), arrays["logits"], atol=1e-5)


def unset(make):
    """Make a network without drawing its weights, which takes longer than what is tested."""
    return nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0)))


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("xor_net_sigmoid_20", partial(xor_net, activation="sigmoid")),
        ("xor_net_relu_30", partial(xor_net, activation="relu")),
        ("xor_net_gelu_acc100", partial(xor_net, activation="gelu")),
        ("circle_net_c3_relu_30", circle_net),
        ("cifar10_medium_cnn", colour_cnn),
    ],
)
def test_published_networks_have_their_logits(reference, name, make):
    arrays = reference(f"papers/{name}")
    single = load_torch(unset(make), arrays)
    # Logits reach 40, where float32 ends at 1e-5: in float64 the tolerance means something.
    double = jax.tree.map(lambda w: w.astype(jnp.float64), single)
    x = arrays["x"]
    x = np.moveaxis(x, 1, -1) if x.ndim == 4 else x
    np.testing.assert_allclose(jax.jit(jax.vmap(double))(x), arrays["logits"], atol=1e-10)
    logits = jax.jit(jax.vmap(single))(x.astype(np.float32))
    np.testing.assert_allclose(logits, arrays["logits"], rtol=1e-6, atol=1e-5)


def test_vgg_has_the_logits_of_pytorch():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    layers, channels = [], 3
    for item in unset(partial(vgg, 11, 7)).plan:
        if item == "pool":
            layers.append(torch.nn.MaxPool2d(2))
            continue
        layers += [torch.nn.Conv2d(channels, item, 3, padding=1), torch.nn.BatchNorm2d(item)]
        layers.append(torch.nn.ReLU())
        channels = item
    network = torch.nn.Sequential(*layers, torch.nn.Flatten(), torch.nn.Linear(512, 7))
    x = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        network.train()(2 * x + 1)  # moves the running statistics off 0 and 1
        expected = network.eval()(x).numpy()
    state = {key: value.numpy() for key, value in network.state_dict().items()}
    model = load_torch(unset(partial(vgg, 11, 7)), state)
    got = jax.jit(jax.vmap(model))(np.moveaxis(x.numpy(), 1, -1))
    np.testing.assert_allclose(got, expected, atol=1e-5)
    np.testing.assert_array_equal(model.norm3.var[...], state["9.running_var"])
    plain = {key: value for key, value in state.items() if not key.startswith("9.")}
    with pytest.raises(ValueError, match="no batch normalisation after 8, expected one"):
        load_torch(unset(partial(vgg, 11, 7)), plain)


def test_the_network_given_is_left_as_it_is(reference):
    model, x = _digits(), jnp.ones(64)
    before = model(x)
    load_torch(model, reference("digits_mlp_relu"))
    np.testing.assert_array_equal(model(x), before)


@pytest.mark.parametrize("prefix", ["", "w."])
def test_npz_with_and_without_prefix(reference, tmp_path, prefix):
    arrays = reference("digits_mlp_relu")
    path = tmp_path / "weights.npz"
    np.savez(path, **{prefix + key: value for key, value in _weights(arrays).items()})
    x = jnp.asarray(arrays["x"][0], jnp.float32)
    np.testing.assert_allclose(load_torch(_digits(), path)(x), arrays["logits"][0], atol=1e-5)


def test_colour_images_are_flattened_channels_first_in_pytorch():
    rng = np.random.default_rng(0)
    state = {"fc.weight": rng.normal(size=(2, 24)), "fc.bias": rng.normal(size=2)}
    x = rng.normal(size=(4, 2, 3))
    model = load_torch(MLP((24, 2), rngs=nnx.Rngs(0)), state, shape=(4, 2, 3))
    expected = state["fc.weight"] @ np.moveaxis(x, -1, 0).ravel() + state["fc.bias"]
    np.testing.assert_allclose(model(x.astype(np.float32)), expected, rtol=1e-5)


def test_the_dtype_stays_that_of_the_network():
    model = MLP((2, 2), rngs=nnx.Rngs(0))
    double = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), model)
    state = {"0.weight": np.full((2, 2), 0.1), "0.bias": np.zeros(2)}
    assert load_torch(double, state).layers[0].kernel[...].dtype == jnp.float64
    assert load_torch(model, state).layers[0].kernel[...].dtype == jnp.float32


def test_batch_normalisation_is_folded_in():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    part = torch.nn.Sequential
    network = part(
        part(torch.nn.Conv2d(3, 32, 3), torch.nn.BatchNorm2d(32), torch.nn.ReLU()),
        part(torch.nn.Conv2d(32, 64, 3, bias=False), torch.nn.BatchNorm2d(64), torch.nn.ReLU()),
        part(torch.nn.MaxPool2d(2), torch.nn.Flatten(), torch.nn.Dropout()),
        part(torch.nn.Linear(64 * 4, 128), torch.nn.ReLU(), torch.nn.Linear(128, 5)),
    )
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        network.train()(3 * x + 1)  # moves the running statistics off 0 and 1
        expected = network.eval()(x).numpy()
    state = {key: value.numpy() for key, value in network.state_dict().items()}
    model = load_torch(unset(partial(CNN, (8, 8, 3), 5)), state)
    got = jax.jit(jax.vmap(model))(np.moveaxis(x.numpy(), 1, -1))
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_pt_files_are_read_as_tensors_only(reference, tmp_path):
    torch = pytest.importorskip("torch")
    arrays = reference("digits_mlp_relu")
    path = tmp_path / "weights.pt"
    torch.save({key: torch.tensor(value) for key, value in _weights(arrays).items()}, path)
    x = jnp.asarray(arrays["x"][0], jnp.float32)
    np.testing.assert_allclose(load_torch(_digits(), path)(x), arrays["logits"][0], atol=1e-5)
    torch.save(torch.nn.Linear(2, 2), path)
    with pytest.raises(ValueError, match="holds more than tensors"):
        load_torch(_digits(), path)
    torch.save(torch.ones(2), path)
    with pytest.raises(ValueError, match="must hold a state dict, got Tensor"):
        load_torch(_digits(), path)


def test_without_pytorch_the_extra_is_named(monkeypatch, tmp_path):
    real = builtins.__import__

    def absent(name, *args, **kwargs):
        if name == "torch":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ImportError, match=r"foliax\[imagenet\]"):
        load_torch(_digits(), tmp_path / "weights.pth")


def test_npz_with_pickles_is_refused(tmp_path):
    path = tmp_path / "weights.npz"
    np.savez(path, **{"0.weight": np.array([{}], object)})
    with pytest.raises(ValueError, match="allow_pickle=False"):
        load_torch(_digits(), path)


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "weights.pkl"
    path.write_bytes(pickle.dumps({}))
    with pytest.raises(ValueError, match=r"must be a \.npz, \.pt or \.pth file, got .*weights.pkl"):
        load_torch(_digits(), path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"2.bias": None}, r"source has no '2\.bias', expected an array of shape \(10,\)"),
        ({"2.bias": np.ones(9)}, r"source\['2\.bias'\] has shape \(9,\), expected \(10,\)"),
        ({"0.weight": np.ones((64, 48))}, r"'0\.weight'\] has shape \(64, 48\), .* \(48, 64\)"),
        ({"0.scale": np.ones(3)}, r"MLP has no place for: 0\.scale \(3,\)"),
        ({"4.bias": np.ones(3)}, r"must hold 2 layers with weights, got 3: 0, 2, 4"),
        ({"0.bias": {"nested": 1}}, r"source\['0\.bias'\] must be an array of numbers, got dict"),
    ],
)
def test_what_does_not_fit_is_named(reference, change, message):
    state = _weights(reference("digits_mlp_relu")) | change
    with pytest.raises(ValueError, match=message):
        load_torch(_digits(), {k: v for k, v in state.items() if v is not None})


def test_a_shape_that_does_not_fit_and_a_foreign_network_are_refused(reference):
    state = _weights(reference("digits_mlp_relu"))
    with pytest.raises(ValueError, match=r"shape must hold 64 numbers, .* got \(8, 8, 3\)"):
        load_torch(_digits(), state, shape=(8, 8, 3))
    with pytest.raises(ValueError, match=r"network of foliax\.zoo, got Linear"):
        load_torch(nnx.Linear(64, 10, rngs=nnx.Rngs(0)), state)

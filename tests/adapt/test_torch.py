"""PyTorch networks, adapted: logits and Jacobian against PyTorch's own, and what is refused."""

import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import foliax
from tests.tolerance import assert_close

torch = pytest.importorskip("torch")
pytest.importorskip("torchax", exc_type=Exception)
nn = torch.nn

# Of PyTorch's own: some of its operations have no rule for batches.
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")


@pytest.fixture(autouse=True)
def _single_precision():
    """As these networks are used."""
    with jax.enable_x64(False):
        yield


def with_statistics(model):
    """Give the normalisations statistics, as after a training."""
    torch.manual_seed(1)
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.2)
            part.running_var.uniform_(0.5, 1.5)
            nn.init.normal_(part.bias, 0, 0.1)
    return model.eval()


def small():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Dropout(0.5), nn.Linear(4 * 4 * 4, 5),
    )  # fmt: skip
    return with_statistics(net), (2, 10, 10)


class Block(nn.Module):
    """A residual block of ResNet-18."""

    def __init__(self, inside, outside, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.downsample = None
        if stride != 1:
            conv = nn.Conv2d(inside, outside, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(outside))

    def forward(self, x):
        same = x if self.downsample is None else self.downsample(x)
        x = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(x)) + same)


def resnet18():
    """11.2 million weights, as torchvision has it."""
    torch.manual_seed(0)
    try:
        from torchvision.models import resnet18

        return with_statistics(resnet18(num_classes=10)), (3, 64, 64)
    except ImportError:
        widths = ((64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2))
        blocks = [Block(*sizes) for a, b, s in widths for sizes in ((a, b, s), (b, b, 1))]
        net = nn.Sequential(
            nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(),
            nn.MaxPool2d(3, 2, 1), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(512, 10),
        )  # fmt: skip
        return with_statistics(net), (3, 64, 64)


def vit():
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    net = torchvision.models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=3, num_heads=4, hidden_dim=64, mlp_dim=128,
        num_classes=10,
    )  # fmt: skip
    nn.init.normal_(net.heads.head.weight, 0, 0.2)  # which is 0 at first
    return net.eval(), (3, 32, 32)


def timm_vit():
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    net = timm.models.vision_transformer.VisionTransformer(
        img_size=32, patch_size=8, depth=2, num_heads=4, embed_dim=64, num_classes=10
    )
    return net.eval(), (3, 32, 32)


def transformers_vit():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        image_size=32, patch_size=8, num_hidden_layers=2, num_attention_heads=4, hidden_size=64,
        intermediate_size=128, num_labels=6,
    )  # fmt: skip
    return transformers.ViTForImageClassification(config).eval(), (3, 32, 32)


def transformers_resnet():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic", num_labels=6
    )
    return with_statistics(transformers.ResNetForImageClassification(config)), (3, 32, 32)


def attention():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
            self.head = nn.Linear(16, 5)

        def forward(self, x):
            return self.head(self.encoder(x).mean(1))

    return Net().eval(), (6, 16)


NETS = {f.__name__: f for f in (
    small, resnet18, vit, timm_vit, transformers_vit, transformers_resnet, attention)}  # fmt: skip


def by_torch(net, x):
    """Return logits and Jacobian by PyTorch, (C, *x.shape)."""

    def logits(y):
        out = net(y[None])
        return getattr(out, "logits", out)[0]

    found = torch.func.jacrev(logits)(torch.from_numpy(np.array(x)))
    return logits(torch.from_numpy(np.array(x))).detach().numpy(), found.detach().numpy()


def agreement(name):
    """Return the largest differences of logits and Jacobian, relative to their largest entry."""
    net, shape = NETS[name]()
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    logits, jacobian = by_torch(net, x)
    model = foliax.adapt(net)
    found = eqx.filter_jit(model)(x), jax.jit(jax.jacrev(model))(x)
    size = sum(p.numel() for p in net.parameters())
    off = [float(np.abs(a - b).max() / np.abs(b).max())
           for a, b in zip(found, (logits, jacobian), strict=True)]  # fmt: skip
    return size, logits, jacobian, model, x, off


@pytest.mark.usefixtures("full_optimization")
@pytest.mark.parametrize("name", NETS)
def test_logits_and_jacobian_are_pytorchs(name):
    _, logits, jacobian, model, x, (of_logits, of_jacobian) = agreement(name)
    assert of_logits < 1e-5
    assert of_jacobian < 1e-4
    p = np.exp(logits - logits.max())
    p /= p.sum()
    j = jacobian.reshape(len(p), -1).astype(np.float64)
    gram = np.sum(p[:, None] * (j - p @ j) ** 2)
    assert_close(foliax.trace(model, x), gram, rtol=2e-4)


def test_weights_are_leaves_and_batches_work():
    net, shape = small()
    model = foliax.adapt(net)
    xs = np.random.default_rng(0).normal(size=(3, *shape)).astype(np.float32)
    many = jax.jit(jax.vmap(foliax.trace, in_axes=(None, 0)))(model, xs)
    assert_close(many, jnp.stack([foliax.trace(model, x) for x in xs]), rtol=1e-4)
    halved = jax.tree.map(lambda w: w / 2 if w.dtype == jnp.float32 else w, model)
    assert float(jnp.abs(foliax.trace(halved, xs[0]) / many[0] - 1)) > 0.1
    before = net[0].weight.clone()
    with torch.no_grad():
        net[0].weight.zero_()  # what was copied stays
    assert_close(foliax.trace(model, xs[0]), many[0], rtol=1e-4)
    net[0].weight.data = before


def test_channels_last_input_and_float64():
    net, shape = small()
    x = np.random.default_rng(0).normal(size=(*shape[1:], shape[0])).astype(np.float32)
    model = foliax.adapt(net, channels="first")
    expected, _ = by_torch(net, np.moveaxis(x, -1, 0))
    assert_close(model(x), expected, rtol=1e-5)
    assert foliax.factor(model, x).shape == (4, x.size)
    with jax.enable_x64(True):
        assert foliax.factor(model, x.astype(np.float64)).dtype == jnp.float64


def test_a_hidden_layer_is_an_input():
    net, shape = small()
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    model = foliax.adapt(net, at="3", given=x)
    hidden = net[:4](torch.from_numpy(x)[None])[0].detach().numpy()
    assert_close(model.hidden, hidden, rtol=1e-5)
    weight, bias = (jnp.asarray(p.detach().numpy()) for p in net[6].parameters())
    rest = Partial(lambda p, h: p[0] @ h.ravel() + p[1], (weight, bias))
    assert_close(model(hidden + 1), rest(hidden + 1), rtol=1e-5)
    assert_close(foliax.factor(model, hidden), foliax.factor(rest, hidden), rtol=1e-4)
    assert not net[3]._forward_hooks


def test_tokens_begin_at_the_layer_that_embeds():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, num_labels=3,
    )  # fmt: skip
    net = transformers.BertForSequenceClassification(config).eval()
    tokens = jnp.array([3, 14, 15, 9, 2])
    layer = "bert.embeddings.word_embeddings"
    model = foliax.adapt(net, at=layer, given=tokens)
    assert model.hidden.shape == (5, 32)
    expected = net(torch.tensor([[3, 14, 15, 9, 2]])).logits[0].detach().numpy()
    assert_close(model(model.hidden), expected, rtol=1e-4)
    assert int(foliax.rank(model, model.hidden)) == 2
    away = foliax.drift(model, model.hidden, jnp.ones((5, 32)), along="kernel", max_steps=4,
                        save_every=4)  # fmt: skip
    assert float(away.probability_change.max()) < 1e-5


def on_meta():
    with torch.device("meta"):
        return nn.Linear(3, 2).eval()


@pytest.mark.parametrize(("call", "message"), [
    (lambda: foliax.adapt(nn.Linear(3, 2)), "got training mode in the model itself; call model"),
    (lambda: foliax.adapt(on_meta()), r"must lie on the CPU.*got weights on meta; call model\.cpu"),
    (lambda: foliax.adapt(small()[0], 3), r"holds its weights, got 1 more"),
    (lambda: foliax.adapt(small()[0], at="conv", given=np.zeros((2, 10, 10), np.float32)),
     "at must name a layer, one of 0, 1, 2, 3, 4, 5, 6; got 'conv'"),
    (lambda: foliax.adapt(nn.Embedding(3, 2).eval())(jnp.ones(3)), "embed first: G differentiates"),
    (lambda: foliax.adapt(nn.Conv2d(1, 2, 3).eval())(jnp.ones((1, 5, 5))),
     r"must return C logits of one input, .*got an array of shape \(7, 2, 3, 3\) for a batch of 7"),
])  # fmt: skip
def test_what_cannot_be_adapted_is_told(call, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        call()


def test_a_version_that_torchax_does_not_know(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchax", None)
    with pytest.raises(ImportError, match=r"needs torchax.*pip install 'foliax\[torch\]'"):
        foliax.adapt(nn.Linear(3, 2).eval())


def main():
    """Print how far each network is from PyTorch."""
    print(f"{'network':22} {'weights':>11} {'logits':>9} {'Jacobian':>9}")
    for name in NETS:
        size, *_, off = agreement(name)
        print(f"{name:22} {size:11,} {off[0]:9.1e} {off[1]:9.1e}")


if __name__ == "__main__":
    main()

"""`perrin.nets.linear` against float64."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from perrin.nets.linear import linear
from perrin.nets.transformer import AdaptiveTransformer


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("shape", [(3, 24), (2, 5, 24), (2, 3, 4, 24)])
def test_agrees_with_float64(shape, gelu):
    torch.manual_seed(0)
    layer, x = nn.Linear(24, 40), torch.randn(shape)
    want = F.linear(x.double(), layer.weight.double(), layer.bias.double())
    want = F.gelu(want, approximate="tanh") if gelu else want
    with torch.no_grad():
        found = linear(layer, x, gelu=gelu)
        turned = linear(layer, x.transpose(0, -2).contiguous().transpose(0, -2), gelu=gelu)
    assert found.shape == want.shape
    assert found.dtype == torch.float32
    assert torch.allclose(found.double(), want, atol=1e-5)
    assert torch.allclose(turned.double(), want, atol=1e-5)


def test_gradients_double_precision_and_bfloat16_take_the_usual_way():
    torch.manual_seed(0)
    layer, x = nn.Linear(8, 8), torch.randn(4, 8)
    linear(layer, x, gelu=True).sum().backward()
    assert layer.weight.grad is not None
    with torch.no_grad():
        assert linear(nn.Linear(8, 8).double(), x.double()).dtype == torch.float64
        with torch.autocast("cpu", torch.bfloat16):
            assert linear(layer, x).dtype == torch.bfloat16


def test_transformer_is_the_same_with_and_without_gradients():
    torch.manual_seed(0)
    net = AdaptiveTransformer(2, 32, 4, 16)
    for p in net.parameters():
        nn.init.normal_(p, std=0.1)
    x, c, bias = torch.randn(3, 7, 32), torch.randn(3, 16), torch.randn(3, 4, 7, 7)
    for b in (None, bias):
        with torch.no_grad():
            found = net(x, c, b)
        assert torch.allclose(found, net(x, c, b), atol=1e-5)

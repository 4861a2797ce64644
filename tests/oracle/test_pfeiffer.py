"""Pfeiffer adapters against the formula LN(x + z + f(LN(x + z))) of docs/deviations.md, row 26, without our code."""

from typing import Any

import plans
import pytest
import torch
from torch import Tensor, nn

from adalora_repro import methods
from adalora_repro.models import backbones
from adalora_repro.models.sites import Site, find_sites

pytestmark = pytest.mark.usefixtures("hydra")


def with_adapters(backbone: str, protocol: str) -> tuple[nn.Module, list[Site]]:
    """A model in eval mode with adapters far from their small initial values."""
    task = ["task=xsum", "budget=0.26%"] if backbone == "tiny-bart" else ["task=rte"]
    words = [*task, f"backbone={backbone}", "method=pfeiffer", f"protocol={protocol}", "data=sample"]
    cfg = plans.resolved(*words).cfg
    torch.manual_seed(0)
    model = backbones.load_model(cfg)
    sites = find_sites(model)
    methods.load(cfg).inject(model, sites)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".adapter." in name:
                parameter.normal_(std=0.1)
    return model.double().eval(), sites


def expected_of(place: Any, x: Tensor, z: Tensor) -> Tensor:
    """LN(x + z + f(LN(x + z))), f(h) = W_up ReLU(W_down h + b_down) + b_up, with the weights of an injected module."""
    norm, adapter = place.norm, dict(place.adapter.named_parameters())

    def ln(u: Tensor) -> Tensor:
        centred = u - u.mean(-1, keepdim=True)
        return norm.weight * centred / (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt() + norm.bias

    hidden = (ln(x + z) @ adapter["down.weight"].T + adapter["down.bias"]).clamp(min=0)
    return ln(x + z + hidden @ adapter["up.weight"].T + adapter["up.bias"])


@pytest.mark.parametrize("protocol", ["paper", "released"])
@pytest.mark.parametrize("backbone", ["tiny-bert", "tiny-roberta", "tiny-deberta", "tiny-bart"])
def test_every_layer_is_the_formula(backbone: str, protocol: str) -> None:
    """From what reaches and leaves it."""
    model, sites = with_adapters(backbone, protocol)
    seen: dict[str, Tensor] = {}

    def keep(name: str, of_input: bool) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            seen[name] = args[0] if of_input else output

        return hook

    for site in sites:
        if site.role in ("ffn_in", "ffn_out", "ffn_norm"):
            model.get_submodule(site.path).register_forward_hook(keep(site.name, site.role == "ffn_in"))
    tokens = torch.randint(5, 261, (2, 9), generator=torch.Generator().manual_seed(0))
    written = {"decoder_input_ids": tokens[:, :4]} if backbone == "tiny-bart" else {}
    with torch.no_grad():
        model(input_ids=tokens, **written)
    layers = [site for site in sites if site.role == "ffn_norm"]
    assert len(layers) == (4 if backbone == "tiny-bart" else 2)
    for site in layers:
        layer = site.name.removesuffix("ffn_norm")
        expected = expected_of(model.get_submodule(site.path), seen[f"{layer}ffn_in"], seen[f"{layer}ffn_out"])
        torch.testing.assert_close(seen[site.name], expected, rtol=1e-9, atol=1e-9)


def test_z_is_the_output_of_the_ffn_after_dropout() -> None:
    model, _ = with_adapters("tiny-bert", "paper")
    output = model.train().bert.encoder.layer[0].output
    seen: list[Tensor] = []
    output.dropout.register_forward_hook(lambda module, args, dropped: seen.append(dropped))
    hidden, x = torch.randn(3, 64).double(), torch.randn(3, 32).double()
    found = output(hidden, x)
    assert (seen[0] == 0).any()
    torch.testing.assert_close(found, expected_of(output.LayerNorm, x, seen[0]), rtol=1e-9, atol=1e-9)

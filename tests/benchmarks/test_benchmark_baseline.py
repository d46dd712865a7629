import pytest
import torch
from diffusers import DDIMScheduler

from ldis_lightning.benchmarks import baseline, parts
from ldis_lightning.benchmarks.infer import ours_of

TINY = parts.SCALES["tiny"]


def context(references=3, queries=2):
    batch = parts.episodes(TINY, "cpu", 1, references, queries, seed=5)
    return batch | {"context": "test", "seed": batch["seed"][:, None], "class_id": batch["class_id"][:1]}


def shaken(module):
    """Weights that start at zero (LDIS-n's new channels) would hide what is done with them."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in module.unet.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return module


def test_the_baseline_trains_the_same_model_on_the_same_inputs():
    module = shaken(parts.ldis1(TINY, "cpu")).train()
    batch = parts.episodes(TINY, "cpu", 3, seed=1)  # every mask has a token, here and in the larger scales
    ours = module.training_loss(batch)["loss"]
    ours.backward()
    gradients = [parameter.grad for parameter in module.unet.parameters()]
    module.zero_grad()
    theirs = baseline.training_loss(baseline.Networks.of(module), batch)
    theirs.backward()
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)
    for mine, parameter in zip(gradients, module.unet.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, mine, rtol=1e-3, atol=1e-5)


def test_the_baseline_is_one_step_inference_of_the_same_model():
    module, batch = shaken(parts.ldis1(TINY, "cpu")).eval(), context()
    theirs = baseline.ldis1_logits(baseline.Networks.of(module), batch)
    assert theirs.shape == (2, 32, 32) and theirs.std() > 1e-3
    torch.testing.assert_close(theirs, ours_of(module, batch), rtol=1e-4, atol=1e-4)


def test_the_baseline_is_guided_inference_of_the_same_model():
    scheduler = DDIMScheduler(clip_sample=False, **parts.NOISE_SCHEDULE)  # DDPM's draws are each one's own
    module, batch = shaken(parts.ldisn(TINY, "cpu", steps=3)).eval(), context()
    module.scheduler = scheduler
    networks = baseline.Networks.of(module)
    null = baseline.null_tokens(networks.encoder, "cpu")
    theirs = baseline.ldisn_logits(networks, null, scheduler, 3, parts.GAMMA, batch)
    scale = theirs.abs().max()  # guidance of a random model makes large numbers
    assert scale > 1e-3
    torch.testing.assert_close(theirs / scale, ours_of(module, batch) / scale, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("changed", ["query_image", "query_mask", "reference_image", "reference_mask", "seed"])
def test_every_input_counts_in_the_baseline(changed):
    networks = baseline.Networks.of(shaken(parts.ldis1(TINY, "cpu")))
    batch, other = (parts.episodes(TINY, "cpu", 2, seed=seed) for seed in (0, 1))
    one, another = (baseline.training_loss(networks, b) for b in (batch, batch | {changed: other[changed]}))
    assert one != another


def test_frozen_networks_are_held_in_the_runs_precision_and_the_unet_is_not():
    module = parts.ldis1(TINY, "cpu")
    networks = baseline.Networks.of(module, torch.bfloat16)
    assert {p.dtype for n in (networks.vae, networks.encoder) for p in n.parameters()} == {torch.bfloat16}
    assert networks.unet.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        loss = baseline.training_loss(networks, parts.episodes(TINY, "cpu", 2))
    exact = baseline.training_loss(baseline.Networks.of(parts.ldis1(TINY, "cpu")), parts.episodes(TINY, "cpu", 2))
    assert loss.isfinite() and abs(loss - exact) < 0.1 * exact


def test_masks_cover_a_realistic_share_of_a_reference():
    masks = parts.rectangles(400, 256, torch.Generator().manual_seed(0)).float().flatten(1).mean(1)
    assert parts.LEAST_SHARE - 0.01 < masks.min() and masks.max() < parts.MOST_SHARE + 0.01
    assert abs(masks.mean() - 0.15) < 0.01


def test_scales_have_the_sizes_that_they_promise():
    with torch.device("meta"):
        sizes = {}
        for name, scale in parts.SCALES.items():
            networks = scale.denoiser().build(4, 1024), scale.autoencoder().vae
            sizes[name] = tuple(sum(p.numel() for p in network.parameters()) for network in networks)
        attended = {name: parts.SCALES[name].denoiser().build(4, 8).config for name in ("mid", "sd15")}
    assert sizes["sd15"] == (860_308_164, 83_653_863)  # Stable Diffusion 1.5 with the projection 1024 -> 768
    assert 55e6 < sizes["mid"][0] < 65e6
    assert all(config["attention_head_dim"] == 8 for config in attended.values())


def test_a_scale_gives_the_same_weights_again():
    one, other = (parts.ldis1(TINY, "cpu").state_dict() for _ in range(2))
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)

# SPDX-License-Identifier: Apache-2.0
"""The original implementations in torch, tiny and with weights from a seed: what they make of given inputs.

Needs torch, diffusers, transformers, safetensors, sentencepiece and protobuf (the extras test and interop); no network.
Every parameter is drawn from a generator seeded by (seed, parameter name), as in `tests/interop/seeded.py`.

One folder per model: diffusers/ and original/ with its files in both layouts, ref.npz with "CASE/in|out|tap/NAME",
keys.json with {parameter name: shape} and the map from original to diffusers names. Taps are outputs of inner modules.
"""

import argparse
import io
import json
import os
import re
import time
import warnings
import zlib
from importlib.metadata import version

import numpy as np

warnings.filterwarnings("ignore")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")

import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

torch.set_grad_enabled(False)


# ----------------------------------------------------------------------------- parameters, inputs
def fill(module, seed, prefix=""):
    """Non-trivial values everywhere (no zeros, no ones), so that every mapping error shows."""
    for name, p in module.named_parameters():
        name = prefix + name.removeprefix(prefix)
        g = np.random.default_rng([seed, zlib.crc32(name.encode())])
        x = g.standard_normal(tuple(p.shape)).astype(np.float32)
        last = name.rsplit(".", 1)[-1]
        if last == "bias":
            x *= 0.1
        elif last == "gamma" or "norm" in name:  # any normalisation scale
            x = 1.0 + 0.1 * x
        elif "scale_shift_table" in name:  # modulation tables
            x *= 0.3
        elif name in ("shared.weight", "fps_embedding.weight") or "relative_attention_bias" in name:
            x *= 0.7  # lookup tables
        elif x.ndim >= 2:
            x /= np.sqrt(np.prod(p.shape[1:]))
        # rounded to bfloat16: the float32 and the bfloat16 files then hold the same numbers
        p.copy_(torch.from_numpy(x).bfloat16().float())
    return module.eval().requires_grad_(False)


def draw(seed, tag, shape, uniform=False):
    g = np.random.default_rng([seed, zlib.crc32(tag.encode())])
    x = g.random(shape) * 2 - 1 if uniform else g.standard_normal(shape)
    return torch.from_numpy(x.astype(np.float32))


class Taps:
    """Collects outputs of chosen sub-modules; chunked modules are joined on `axis`."""

    def __init__(self, model, names, axis=None):
        self.axis, self.got, self.handles = axis, {}, []
        table = dict(model.named_modules())
        for n in names:
            self.handles.append(table[n].register_forward_hook(self._hook(n)))

    def _hook(self, name):
        def run(_, __, out):
            outs = out if isinstance(out, tuple) else (out,)
            for i, o in enumerate(outs):
                if torch.is_tensor(o):
                    self.got.setdefault(name if len(outs) == 1 else f"{name}#{i}", []).append(
                        o.detach().float()
                    )

        return run

    def take(self):
        r = {}
        for k, v in self.got.items():
            r[k] = (torch.cat(v, self.axis) if self.axis is not None else v[-1]).numpy()
        self.got = {}
        return r

    def close(self):
        for h in self.handles:
            h.remove()


class Ref(dict):
    def case(self, name, inputs, outputs, taps=None):
        for kind, d in (("in", inputs), ("out", outputs), ("tap", taps or {})):
            for k, v in d.items():
                self[f"{name}/{kind}/{k}"] = v.numpy() if torch.is_tensor(v) else np.asarray(v)


# ----------------------------------------------------------------------------- key maps
def dit_to_original(k):
    """diffusers name -> authors' name (Wan 2.1/2.2 and SkyReels-V2)."""
    fixed = [
        (r"^condition_embedder\.time_embedder\.linear_1\.", "time_embedding.0."),
        (r"^condition_embedder\.time_embedder\.linear_2\.", "time_embedding.2."),
        (r"^condition_embedder\.time_proj\.", "time_projection.1."),
        (r"^condition_embedder\.text_embedder\.linear_1\.", "text_embedding.0."),
        (r"^condition_embedder\.text_embedder\.linear_2\.", "text_embedding.2."),
        (r"^condition_embedder\.image_embedder\.norm1\.", "img_emb.proj.0."),
        (r"^condition_embedder\.image_embedder\.ff\.net\.0\.proj\.", "img_emb.proj.1."),
        (r"^condition_embedder\.image_embedder\.ff\.net\.2\.", "img_emb.proj.3."),
        (r"^condition_embedder\.image_embedder\.norm2\.", "img_emb.proj.4."),
        (r"^condition_embedder\.image_embedder\.pos_embed$", "img_emb.emb_pos"),
        (r"^proj_out\.", "head.head."),
        (r"^scale_shift_table$", "head.modulation"),
        (r"^fps_projection\.net\.0\.proj\.", "fps_projection.0."),
        (r"^fps_projection\.net\.2\.", "fps_projection.2."),
    ]
    for a, b in fixed:
        if re.search(a, k):
            return re.sub(a, b, k)
    m = re.match(r"^(blocks\.\d+)\.(.*)$", k)
    if not m:
        return k  # patch_embedding, fps_embedding
    head, tail = m.groups()
    if tail == "scale_shift_table":
        return head + ".modulation"
    if tail.startswith("norm2."):
        return head + ".norm3." + tail[6:]  # the affine one
    tail = re.sub(r"^ffn\.net\.0\.proj\.", "ffn.0.", tail)
    tail = re.sub(r"^ffn\.net\.2\.", "ffn.2.", tail)
    tail = re.sub(r"^attn1\.", "self_attn.", tail)
    tail = re.sub(r"^attn2\.", "cross_attn.", tail)
    tail = re.sub(r"\.to_([qkv])\.", r".\1.", tail)
    tail = tail.replace(".to_out.0.", ".o.")
    tail = tail.replace(".add_k_proj.", ".k_img.").replace(".add_v_proj.", ".v_img.")
    tail = tail.replace(".norm_added_k.", ".norm_k_img.")
    return f"{head}.{tail}"


def vae_to_original(k, residual, n_res=2):
    """diffusers name -> authors' name; residual=False is VAE 2.1, True is VAE 2.2."""
    k = re.sub(r"^quant_conv\.", "conv1.", k)
    k = re.sub(r"^post_quant_conv\.", "conv2.", k)
    k = re.sub(r"^(encoder|decoder)\.conv_in\.", r"\1.conv1.", k)
    k = re.sub(r"^(encoder|decoder)\.norm_out\.", r"\1.head.0.", k)
    k = re.sub(r"^(encoder|decoder)\.conv_out\.", r"\1.head.2.", k)
    k = re.sub(r"^(encoder|decoder)\.mid_block\.attentions\.0\.", r"\1.middle.1.", k)
    k = re.sub(
        r"^(encoder|decoder)\.mid_block\.resnets\.(\d)\.", lambda m: f"{m[1]}.middle.{2 * int(m[2])}.", k
    )
    if residual:
        k = re.sub(
            r"^encoder\.down_blocks\.(\d+)\.resnets\.(\d+)\.", r"encoder.downsamples.\1.downsamples.\2.", k
        )
        k = re.sub(
            r"^encoder\.down_blocks\.(\d+)\.downsampler\.",
            lambda m: f"encoder.downsamples.{m[1]}.downsamples.{n_res}.",
            k,
        )
        k = re.sub(r"^decoder\.up_blocks\.(\d+)\.resnets\.(\d+)\.", r"decoder.upsamples.\1.upsamples.\2.", k)
        k = re.sub(
            r"^decoder\.up_blocks\.(\d+)\.upsampler\.",
            lambda m: f"decoder.upsamples.{m[1]}.upsamples.{n_res + 1}.",
            k,
        )
    else:
        k = re.sub(r"^encoder\.down_blocks\.", "encoder.downsamples.", k)  # flat in both layouts
        step = n_res + 2  # resnets + one resampler
        k = re.sub(
            r"^decoder\.up_blocks\.(\d+)\.resnets\.(\d+)\.",
            lambda m: f"decoder.upsamples.{int(m[1]) * step + int(m[2])}.",
            k,
        )
        k = re.sub(
            r"^decoder\.up_blocks\.(\d+)\.upsamplers\.0\.",
            lambda m: f"decoder.upsamples.{int(m[1]) * step + step - 1}.",
            k,
        )
    for a, b in (
        (".norm1.", ".residual.0."),
        (".conv1.", ".residual.2."),
        (".norm2.", ".residual.3."),
        (".conv2.", ".residual.6."),
        (".conv_shortcut.", ".shortcut."),
    ):
        if re.search(r"\.(middle|downsamples|upsamples)\.", k):
            k = k.replace(a, b)
    return k


def umt5_to_original(k):
    if k in ("shared.weight", "encoder.embed_tokens.weight"):
        return "token_embedding.weight"
    if k == "encoder.final_layer_norm.weight":
        return "norm.weight"
    n, tail = re.match(r"^encoder\.block\.(\d+)\.layer\.(.*)$", k).groups()
    tail = {
        "0.layer_norm.weight": "norm1.weight",
        "1.layer_norm.weight": "norm2.weight",
        "0.SelfAttention.relative_attention_bias.weight": "pos_embedding.embedding.weight",
        "1.DenseReluDense.wi_0.weight": "ffn.gate.0.weight",
        "1.DenseReluDense.wi_1.weight": "ffn.fc1.weight",
        "1.DenseReluDense.wo.weight": "ffn.fc2.weight",
    }.get(tail, re.sub(r"^0\.SelfAttention\.", "attn.", tail))
    return f"blocks.{n}.{tail}"


# ----------------------------------------------------------------------------- writing
def write(folder, model, ref, to_original, original_config, original_files, shard, extra=None):
    os.makedirs(folder + "/diffusers", exist_ok=True)
    os.makedirs(folder + "/original", exist_ok=True)
    model.save_pretrained(folder + "/diffusers", max_shard_size=shard)
    sd = {k: v.contiguous() for k, v in model.state_dict().items() if k != "encoder.embed_tokens.weight"}
    names = {k: to_original(k) for k in sd}
    assert len(set(names.values())) == len(names), "two parameters share one original name"
    orig = {names[k]: v for k, v in sd.items()}
    for f in original_files:
        if f.endswith(".safetensors"):
            save_file(orig, f"{folder}/original/{f}", metadata={"format": "pt"})
        elif "bf16" in f:
            torch.save({k: v.bfloat16() for k, v in orig.items()}, f"{folder}/original/{f}")
        else:
            torch.save(orig, f"{folder}/original/{f}")
    if original_config is not None:
        with open(folder + "/original/config.json", "w") as fh:
            json.dump(original_config, fh, indent=2)
    with open(folder + "/keys.json", "w") as fh:
        json.dump(
            {
                "shapes": {k: list(v.shape) for k, v in sd.items()},
                "original_to_diffusers": {v: k for k, v in names.items()},
            },
            fh,
            indent=1,
        )
    np.savez(folder + "/ref.npz", **ref)
    return {"keys": len(sd), "parameters": int(sum(v.numel() for v in sd.values())), **(extra or {})}


def timed(f, n=3):
    f()
    t = time.perf_counter()
    for _ in range(n):
        f()
    return round((time.perf_counter() - t) / n, 4)


# ----------------------------------------------------------------------------- the models
DIT = dict(
    patch_size=(1, 2, 2),
    num_attention_heads=2,
    attention_head_dim=32,
    in_channels=16,
    out_channels=16,
    text_dim=48,
    freq_dim=64,
    ffn_dim=160,
    num_layers=3,
    cross_attn_norm=True,
    qk_norm="rms_norm_across_heads",
    eps=1e-6,
    rope_max_seq_len=1024,
)
DIT_TAPS = [
    "patch_embedding",
    "condition_embedder.time_embedder",
    "condition_embedder.time_proj",
    "condition_embedder.text_embedder",
    "blocks.0.norm1",
    "blocks.0.attn1.norm_q",
    "blocks.0.attn1",
    "blocks.0.attn2",
    "blocks.0.ffn",
    "blocks.0",
    "blocks.1",
    "blocks.2",
    "norm_out",
    "proj_out",
    "rope",
]


def original_dit_config(c, model_type="t2v", **more):
    # the authors' config.json leaves out patch_size, cross_attn_norm, qk_norm, text_dim, window_size
    d = c["num_attention_heads"] * c["attention_head_dim"]
    return dict(
        _class_name="WanModel",
        dim=d,
        eps=c["eps"],
        ffn_dim=c["ffn_dim"],
        freq_dim=c["freq_dim"],
        in_dim=c["in_channels"],
        model_type=model_type,
        num_heads=c["num_attention_heads"],
        num_layers=c["num_layers"],
        out_dim=c["out_channels"],
        text_len=512,
        **more,
    )


def text(seed, tag, b, n, d, lens):
    x = draw(seed, tag, (b, n, d))
    for i, m in enumerate(lens):
        x[i, m:] = 0.0  # what Wan feeds: padded rows are exact zeros, and no mask
    return x


def make_wan(out, seed):
    from diffusers import WanTransformer3DModel

    m = fill(WanTransformer3DModel(**DIT), seed)
    taps, ref = Taps(m, DIT_TAPS), Ref()
    x = draw(seed, "x", (2, 16, 3, 6, 10))  # T,H,W differ: an axis mix-up cannot hide
    c = text(seed, "c", 2, 24, 48, (17, 5))
    for name, t in (("t_int", [999.0, 3.0]), ("t_frac", [517.25, 0.0])):
        t = torch.tensor(t)
        y = m(x, t, c).sample
        ref.case(name, dict(x=x, t=t, context=c), dict(y=y), taps.take())
    t = (
        torch.rand(2, 3 * 3 * 5, generator=torch.Generator().manual_seed(1)) * 1000
    )  # Wan 2.2 TI2V: t per token
    y = m(x, t, c).sample
    ref.case("t_per_token", dict(x=x, t=t, context=c), dict(y=y), taps.take())
    # Token features of variance ~1e-6 at the first norm.  Compare the tap blocks.0.norm1 (atol 1e-2): a wrong
    # LayerNorm epsilon is off by >1 there, while it moves the outputs of all cases by only ~1e-5..1e-4.
    w = m.patch_embedding.weight.flatten(1).double()  # square here: 16*1*2*2 = 64
    p = (
        torch.linalg.solve(w, -m.patch_embedding.bias.double())[None]
        + 1e-3 * draw(seed, "e", (45, 64)).double()
    )
    xl = (
        p.float()
        .view(1, 3, 3, 5, 16, 2, 2)
        .permute(0, 4, 1, 2, 5, 3, 6)
        .reshape(1, 16, 3, 6, 10)
        .contiguous()
    )
    tl = torch.tensor([40.0])
    y = m(xl, tl, c[:1]).sample
    ref.case("low_variance", dict(x=xl, t=tl, context=c[:1]), dict(y=y), taps.take())
    x1 = draw(seed, "x1", (1, 16, 1, 4, 4))
    t1 = torch.tensor([250.0])
    ref.case("image", dict(x=x1, t=t1, context=c[:1]), dict(y=m(x1, t1, c[:1]).sample))
    taps.close()
    sec = timed(lambda: m(x, torch.tensor([5.0, 6.0]), c))
    return write(
        out,
        m,
        ref,
        dit_to_original,
        original_dit_config(DIT),
        ["diffusion_pytorch_model.safetensors"],
        "200KB",
        dict(forward_seconds=sec),
    )


def make_wan_i2v(out, seed):
    from diffusers import WanTransformer3DModel

    cfg = dict(DIT, in_channels=36, image_dim=40, added_kv_proj_dim=64, num_layers=2)
    m = fill(WanTransformer3DModel(**cfg), seed)
    ref = Ref()
    x, c = draw(seed, "x", (1, 36, 2, 4, 6)), text(seed, "c", 1, 512, 48, (30,))  # 512 is wired in
    im, t = draw(seed, "im", (1, 257, 40)), torch.tensor([321.0])
    taps = Taps(m, ["condition_embedder.image_embedder", "blocks.0.attn2", "blocks.0"])
    y = m(x, t, c, encoder_hidden_states_image=im).sample
    ref.case("i2v", dict(x=x, t=t, context=c, image=im), dict(y=y), taps.take())
    taps.close()
    return write(
        out,
        m,
        ref,
        dit_to_original,
        original_dit_config(cfg, "i2v"),
        ["diffusion_pytorch_model.safetensors"],
        "200KB",
    )


def make_skyreels(out, seed):
    from diffusers import SkyReelsV2Transformer3DModel

    cfg = dict(DIT, inject_sample_info=True)
    m = fill(SkyReelsV2Transformer3DModel(**cfg), seed)
    ref = Ref()
    x = draw(seed, "x", (1, 16, 4, 6, 10))
    c = text(seed, "c", 1, 24, 48, (17,))
    taps = Taps(
        m,
        [
            "condition_embedder.time_embedder",
            "condition_embedder.time_proj",
            "fps_projection",
            "blocks.0.attn1",
            "blocks.0",
            "blocks.2",
            "norm_out",
            "proj_out",
        ],
    )
    for fps in (0, 1):  # 0 means 16 fps, 1 means 24 fps
        t = torch.tensor([731])
        ref.case(
            f"plain_fps{fps}",
            dict(x=x, t=t, context=c, fps=[fps]),
            dict(y=m(x, t, c, fps=[fps]).sample),
            taps.take(),
        )
    t = torch.tensor([[0, 250, 600, 999]])  # one level per latent frame
    for block in (1, 2, 4):  # >1 switches the block-causal mask on
        m._set_ar_attention(block)
        y = m(x, t, c, enable_diffusion_forcing=True, fps=[1]).sample
        ref.case(f"df_block{block}", dict(x=x, t=t, context=c, fps=[1], block=block), dict(y=y), taps.take())
    m._set_ar_attention(1)
    # The authors' code can also mask frame by frame (block 1); diffusers reads 1 as "no mask", so the
    # mask is handed to the blocks here.
    frame = torch.arange(4).repeat_interleave(15)
    mask = (frame[None, :] <= frame[:, None])[None, None]
    hooks = [b.register_forward_pre_hook(lambda _, a: (*a[:4], mask)) for b in m.blocks]
    y = m(x, t, c, enable_diffusion_forcing=True, fps=[1]).sample
    for h in hooks:
        h.remove()
    ref.case("df_frame_causal", dict(x=x, t=t, context=c, fps=[1], block=1), dict(y=y), taps.take())
    # Batch of two with different fps: diffusers 0.42.1 refuses it (shape error), so rows are run one by one.
    xs, cs = draw(seed, "xs", (2, 16, 4, 6, 10)), text(seed, "cs", 2, 24, 48, (9, 20))
    ts = torch.tensor([[0, 250, 600, 999], [10, 10, 800, 900]])
    rows = [
        m(xs[i : i + 1], ts[i : i + 1], cs[i : i + 1], enable_diffusion_forcing=True, fps=[i]).sample
        for i in (0, 1)
    ]
    ref.case("df_batch2", dict(x=xs, t=ts, context=cs, fps=[0, 1], block=1), dict(y=torch.cat(rows)))
    taps.close()
    sec = timed(lambda: m(x, t, c, enable_diffusion_forcing=True, fps=[1]))
    return write(
        out,
        m,
        ref,
        dit_to_original,
        original_dit_config(cfg, inject_sample_info=True),
        ["model.safetensors"],
        "200KB",
        dict(forward_seconds=sec),
    )


WAN21_MEAN = [
    -0.7571,
    -0.7089,
    -0.9113,
    0.1075,
    -0.1745,
    0.9653,
    -0.1517,
    1.5508,
    0.4134,
    -0.0715,
    0.5517,
    -0.3632,
    -0.1922,
    -0.9497,
    0.2503,
    -0.2921,
]
WAN21_STD = [
    2.8184,
    1.4541,
    2.3275,
    2.6558,
    1.2196,
    1.7708,
    2.6052,
    2.0743,
    3.2687,
    2.1526,
    2.8652,
    1.5579,
    1.6382,
    1.1253,
    2.8251,
    1.9160,
]
VAE = dict(
    base_dim=8,
    z_dim=16,
    dim_mult=[1, 2, 4, 4],
    num_res_blocks=2,
    attn_scales=[],
    temperal_downsample=[False, True, True],
    latents_mean=WAN21_MEAN,
    latents_std=WAN21_STD,
)


def run_vae(out, seed, cfg, residual, pth, hw):
    from diffusers import AutoencoderKLWan

    m = fill(AutoencoderKLWan(**cfg), seed)
    m.decoder.conv_out.weight.mul_(0.25)  # keeps the final clamp mostly inactive
    mean = torch.tensor(cfg["latents_mean"]).view(1, -1, 1, 1, 1)
    std = torch.tensor(cfg["latents_std"]).view(1, -1, 1, 1, 1)
    names = [
        "encoder.conv_in",
        "encoder.mid_block",
        "encoder.norm_out",
        "decoder.conv_in",
        "decoder.mid_block",
        "decoder.conv_out",
    ]
    names += [f"encoder.down_blocks.{i}" for i in range(len(m.encoder.down_blocks))]
    names += [f"decoder.up_blocks.{i}" for i in range(len(m.decoder.up_blocks))]
    taps, ref = Taps(m, names, axis=2), Ref()
    for frames in (1, 5, 9, 13):
        x = draw(seed, f"v{frames}", (1, 3, frames, *hw), uniform=True)
        post = m.encode(x).latent_dist
        z = (post.mean - mean) / std  # what the DiT sees
        # decode a latent of our own as well, so decoder errors do not depend on the encoder
        z2 = draw(seed, f"z{frames}", tuple(post.mean.shape))
        y = m.decode(post.mean).sample
        t1 = taps.take() if frames in (1, 9) else {}
        taps.got = {}
        y2 = m.decode(z2 * std + mean).sample
        taps.got = {}
        ref.case(
            f"T{frames}",
            dict(x=x, z2=z2),
            dict(mean=post.mean, logvar=post.logvar, z=z, recon=y, decoded_z2=y2),
            t1,
        )
    taps.close()
    x = draw(seed, "vt", (1, 3, 9, *hw), uniform=True)
    enc, mu = timed(lambda: m.encode(x)), m.encode(x).latent_dist.mean
    dec = timed(lambda: m.decode(mu))
    return write(
        out,
        m,
        ref,
        lambda k: vae_to_original(k, residual),
        None,
        [pth],
        "10GB",
        dict(encode_seconds=enc, decode_seconds=dec),
    )


def make_vae(out, seed):
    return run_vae(out, seed, VAE, False, "Wan2.1_VAE.pth", (32, 48))


def make_vae22(out, seed):
    cfg = dict(
        VAE,
        z_dim=4,
        latents_mean=[0.1, -0.2, 0.3, -0.4],
        latents_std=[1.5, 0.7, 2.0, 1.1],
        decoder_base_dim=12,
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_spatial=16,
    )
    return run_vae(out, seed, cfg, True, "Wan2.2_VAE.pth", (64, 96))


def make_umt5(out, seed):
    from transformers import UMT5Config, UMT5EncoderModel

    cfg = UMT5Config(
        vocab_size=96, d_model=48, d_kv=16, d_ff=64, num_layers=3, num_heads=2
    )  # d_kv*heads != d_model
    m = fill(UMT5EncoderModel._from_config(cfg, attn_implementation="eager"), seed)
    g, ref, n = np.random.default_rng([seed, 7]), Ref(), 300  # 300 > 128: far buckets too
    ids = torch.from_numpy(g.integers(3, 96, (3, n)))
    mask = torch.ones(3, n, dtype=torch.long)
    for i, k in enumerate((n, 40, 2)):
        ids[i, k - 1], ids[i, k:], mask[i, k:] = 1, 0, 0  # </s> then <pad>
    taps = Taps(m, ["encoder.block.0.layer.0.SelfAttention", "encoder.final_layer_norm"])
    y = m(input_ids=ids, attention_mask=mask).last_hidden_state
    ctx = torch.zeros(3, 512, 48)
    ctx[:, :n] = y * mask[..., None]
    att = m.encoder.block[0].layer[0].SelfAttention
    rel = torch.arange(-400, 401)
    ref.case("masked", dict(ids=ids, mask=mask), dict(y=y, context512=ctx), taps.take())
    ref.case("buckets", dict(relative_position=rel), dict(bucket=att._relative_position_bucket(rel)))
    taps.close()
    sec = timed(lambda: m(input_ids=ids, attention_mask=mask))
    return write(
        out,
        m,
        ref,
        umt5_to_original,
        None,
        ["models_t5_umt5-xxl-enc-bf16.pth"],
        "20KB",
        dict(forward_seconds=sec),
    )


def make_clip(out, seed):
    from transformers import CLIPVisionConfig, CLIPVisionModel

    cfg = CLIPVisionConfig(
        hidden_size=40,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=28,
        patch_size=14,
        hidden_act="gelu",
    )
    m = CLIPVisionModel._from_config(cfg, attn_implementation="eager")
    fill(m, seed, "vision_model.")
    x = draw(seed, "picture", (2, 3, 28, 28))
    y = m(pixel_values=x, output_hidden_states=True).hidden_states[-2]
    ref = Ref()
    ref.case("picture", dict(picture=x), dict(features=y))
    os.makedirs(out + "/diffusers")
    m.save_pretrained(out + "/diffusers")
    shapes = {
        "vision_model." + k.removeprefix("vision_model."): list(p.shape) for k, p in m.named_parameters()
    }
    with open(out + "/keys.json", "w") as fh:
        json.dump({"shapes": shapes, "original_to_diffusers": {}}, fh, indent=1)
    np.savez(out + "/ref.npz", **ref)
    return {"keys": len(shapes)}


def make_tokenizer(out, seed):
    """A tiny unigram tokenizer in the on-disk form of UMT5 (spiece.model + tokenizer.json), with reference ids."""
    import random

    import sentencepiece as spm
    from transformers import T5Tokenizer

    os.makedirs(out, exist_ok=True)
    words = "a the cat dog runs slow red blue video of in on camera pans left beach night rain train 猫 海滩 日落".split()
    rnd = random.Random(seed)
    lines = [" ".join(rnd.choices(words, k=rnd.randint(4, 10))) + rnd.choice(".!,") for _ in range(2000)]
    written = io.BytesIO()  # a file would hold its own path
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=written,
        vocab_size=86,
        model_type="unigram",
        character_coverage=1.0,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        pad_piece="<pad>",
        eos_piece="</s>",
        unk_piece="<unk>",
        minloglevel=3,
    )
    with open(out + "/spiece.model", "wb") as fh:
        fh.write(written.getvalue())
    sp = spm.SentencePieceProcessor(model_file=out + "/spiece.model")
    with open(out + "/tokenizer_config.json", "w") as fh:
        json.dump(
            {
                "tokenizer_class": "T5Tokenizer",
                "extra_ids": 4,
                "eos_token": "</s>",
                "unk_token": "<unk>",
                "pad_token": "<pad>",
                "legacy": False,
            },
            fh,
        )
    tk = T5Tokenizer.from_pretrained(out)
    tk.save_pretrained(out)
    prompts = ["a cat runs on the beach.", "  two   spaces\n and a newline ", "猫 在 海滩, red video!", ""]
    got = tk(prompts, padding="max_length", max_length=24, truncation=True)
    assert all(tk(p).input_ids == sp.encode(p) + [1] for p in prompts)
    with open(out + "/ref.json", "w") as fh:
        json.dump(
            {"prompts": prompts, "max_length": 24, "ids": got["input_ids"], "mask": got["attention_mask"]},
            fh,
            ensure_ascii=False,
            indent=1,
        )
    return {"pieces": sp.vocab_size(), "with_extra_ids": len(tk)}


MAKERS = dict(
    wan=make_wan,
    wan_i2v=make_wan_i2v,
    skyreels=make_skyreels,
    vae=make_vae,
    vae22=make_vae22,
    umt5=make_umt5,
    tokenizer=make_tokenizer,
    clip=make_clip,
)


def assemble(root):
    """Joins the parts into one tiny repository per layout; the sizes of the parts agree (text 48, latent 16)."""
    import shutil

    d, o = root + "/pipeline_diffusers", root + "/pipeline_original"
    for p in (d, o):
        shutil.rmtree(p, ignore_errors=True)
    for part, name in (("wan", "transformer"), ("vae", "vae"), ("umt5", "text_encoder")):
        shutil.copytree(f"{root}/{part}/diffusers", f"{d}/{name}")
        shutil.copytree(f"{root}/{part}/original", o, dirs_exist_ok=True)
    for t in (d + "/tokenizer", o + "/google/umt5-xxl"):
        shutil.copytree(root + "/tokenizer", t, ignore=shutil.ignore_patterns("ref.json"))
    os.makedirs(d + "/scheduler")
    with open(d + "/scheduler/scheduler_config.json", "w") as fh:
        json.dump(
            {
                "_class_name": "UniPCMultistepScheduler",
                "num_train_timesteps": 1000,
                "prediction_type": "flow_prediction",
                "use_flow_sigmas": True,
                "flow_shift": 3.0,
                "solver_order": 2,
            },
            fh,
            indent=2,
        )
    with open(d + "/model_index.json", "w") as fh:
        json.dump(
            {
                "_class_name": "WanPipeline",
                "scheduler": ["diffusers", "UniPCMultistepScheduler"],
                "text_encoder": ["transformers", "UMT5EncoderModel"],
                "tokenizer": ["transformers", "T5Tokenizer"],
                "transformer": ["diffusers", "WanTransformer3DModel"],
                "vae": ["diffusers", "AutoencoderKLWan"],
            },
            fh,
            indent=2,
        )


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--out", required=True)
    ap.add_argument("--models", default=",".join(MAKERS))
    ap.add_argument("--seed", type=int, default=0)
    ap.add_argument("--threads", type=int, default=0)
    a = ap.parse_args()
    if a.threads:
        torch.set_num_threads(a.threads)
    man = {
        "versions": {p: version(p) for p in ("torch", "diffusers", "transformers", "safetensors", "numpy")},
        "seed": a.seed,
        "models": {},
    }
    for name in a.models.split(","):
        t = time.perf_counter()
        info = MAKERS[name](os.path.join(a.out, name), a.seed)
        info["seconds"] = round(time.perf_counter() - t, 2)
        man["models"][name] = info
        print(name, info, flush=True)
    if {"wan", "vae", "umt5", "tokenizer"} <= set(a.models.split(",")):
        assemble(a.out)
    with open(os.path.join(a.out, "manifest.json"), "w") as fh:
        json.dump(man, fh, indent=1)


if __name__ == "__main__":
    main()

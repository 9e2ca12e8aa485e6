"""How fast codecs encode: objects/s, GFLOP/s, the share of the matrix-product rate, and polymathic-aion beside them.

    python benchmarks/codec_throughput.py [--threads 2] [--seconds 4] [--device cpu] [--sizes tiny,small,aion]

Everything on the same batch, with the same dtype and threads, in one run, ours and the peer in turns. *Products*: a
large square matrix product by torch with the same dtype and threads, the rate that nothing exceeds here. GFLOP are
counted from the operations that torch runs (`torch.utils.flop_counter`), a multiplication and an addition as two; they
are those of the network, once. `ours` is `Codec.encode` from numpy arrays to tokens in numpy, with all its checks; the
peer's is `encode` from tensors to tensors. The peer's codecs have AION-1's sizes and random weights, which ours take
over, and its tokens are compared.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from skycairn.tokenizers.image import ImageCodec
from skycairn.tokenizers.network import NetworkCodec, Precision
from skycairn.tokenizers.spectrum import SpectrumCodec

BATCH = 16
LEAST = 0.1
COLUMNS = ("codec", "size", "dtype", "who", "objects/s", "GFLOP an object", "GFLOP/s", "of the products")
HEAD = "| " + " | ".join([*COLUMNS, "of the peer", "equal tokens"]) + " |\n" + "|---" * 10 + "|"


def rate(given: Callable[[], Any], seconds: float) -> float:
    """Calls a second, each to its end on a GPU too: the median of many, after one for warming up."""

    def work() -> None:
        given()
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()  # else it is the launches that are timed

    work()
    took: list[float] = []
    began = time.perf_counter()
    while time.perf_counter() - began < seconds or len(took) < 3:
        start = time.perf_counter()
        work()
        took.append(time.perf_counter() - start)
    return 1 / statistics.median(took)


def products(precision: Precision, device: str, seconds: float) -> float:
    """GFLOP/s of square matrix products, as large as take a twentieth of a second, up to what fills any machine."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    n, most = 256, 2048 if device == "cpu" else 8192
    while True:
        a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))

        def work(a: torch.Tensor = a, b: torch.Tensor = b) -> None:
            torch.matmul(a, b)

        done = rate(work, 0.0)
        if n == most or done < 20:
            return rate(work, seconds) * 2 * n**3 / 1e9
        n *= 2


def images(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """A batch of Legacy Survey images, nanomaggies."""
    shape = (BATCH, 4, 160, 160)
    flux = rng.normal(0, 0.02, shape) + rng.gamma(0.05, 1.0, shape)
    return {"flux": flux.astype(np.float32), "ivar": np.full(shape, 2500, np.float32), "mask": np.zeros(shape, bool)}


def spectra(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """A batch of DESI spectra, 1e-17 erg/s/cm2/Angstrom."""
    shape = (BATCH, 7781)
    flux = rng.gamma(2.0, 2.0, (BATCH, 1)) + rng.normal(0, 0.5, shape)
    wavelength = np.broadcast_to(3600 + 0.8 * np.arange(shape[1]), shape)
    return {
        "flux": flux.astype(np.float32),
        "ivar": np.full(shape, 4, np.float32),
        "mask": np.zeros(shape, bool),
        "wavelength": wavelength.astype(np.float32),
    }


def flops(codec: NetworkCodec, measurement: dict[str, np.ndarray]) -> float:
    """GFLOP of encoding one source."""
    tensors = {k: v.to(codec.device) for k, v in codec.tensors({k: v[:1] for k, v in measurement.items()}).items()}
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        codec.codes(tensors)
    return counter.get_total_flops() / 1e9


def peer_image(measurement: dict[str, np.ndarray], device: str) -> tuple[Any, Callable[[], torch.Tensor], ImageCodec]:
    """The peer's codec of AION-1's size, its encoding of the batch, and ours of the same weights."""
    from aion.codecs.image import ImageCodec as Peer
    from aion.modalities import LegacySurveyImage

    peer = Peer(quantizer_levels=[7, 5, 5, 5, 5], hidden_dims=512, multisurvey_projection_dims=54, n_compressions=2,
                num_consecutive=4, embedding_dim=5, range_compression_factor=0.01, mult_factor=10.0)  # fmt: skip
    torch.manual_seed(0)
    for p in peer.parameters():
        torch.nn.init.normal_(p, 0, 0.05)
    peer = peer.to(device).eval()
    flux = torch.from_numpy(measurement["flux"]).to(device)
    bands = ["DES-G", "DES-R", "DES-I", "DES-Z"]

    def work() -> torch.Tensor:
        with torch.inference_mode():
            return peer.encode(LegacySurveyImage(flux=flux.clone(), bands=bands))

    ours = ImageCodec.fresh("aion", clip=(6.0, 15.0, 20.0, 25.0), compat="aion")
    return peer, work, ours


def peer_spectrum(
    measurement: dict[str, np.ndarray], device: str
) -> tuple[Any, Callable[[], torch.Tensor], SpectrumCodec]:
    """As `peer_image`."""
    from aion.codecs.spectrum import SpectrumCodec as Peer
    from aion.modalities import DESISpectrum

    peer = Peer(encoder_depths=[3, 3, 27, 3], encoder_dims=[64, 128, 256, 512], decoder_depths=[3, 9, 3, 3],
                decoder_dims=[256, 128, 64, 2], latent_channels=512, embedding_dim=10, dim=10, codebook_size=1024,
                lambda_min=3500.0, resolution=0.8, num_pixels=8704, clip_ivar=100, clip_flux=None, input_scaling=0.2,
                normalization_range=(-1, 5))  # fmt: skip
    torch.manual_seed(0)
    for p in peer.parameters():
        torch.nn.init.normal_(p, 0, 0.05)
    peer = peer.to(device).eval()
    given = {k: torch.from_numpy(np.ascontiguousarray(v)).to(device) for k, v in measurement.items()}

    def work() -> torch.Tensor:
        with torch.inference_mode():
            return peer.encode(DESISpectrum(**given))

    ours = SpectrumCodec.fresh("aion", preprocessing="aion")
    return peer, work, ours


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement, at least three calls")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--sizes", default="tiny,small,aion")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    precisions: tuple[Precision, ...] = ("fp32", "bf16")
    limit = {p: products(p, args.device, args.seconds) for p in precisions}
    print(f"torch {torch.__version__}, {args.device}, {args.threads} threads, batch {BATCH}")
    if limit["bf16"] < LEAST * limit["fp32"]:
        precisions = ("fp32",)
        print("this processor has no bf16 of its own (below a tenth of fp32's rate): the codecs are not timed in it")
    print("products: " + ", ".join(f"{p} {v:,.0f} GFLOP/s" for p, v in limit.items()) + "\n")
    print(HEAD)
    rng = np.random.default_rng(0)
    kinds: dict[str, tuple[type[NetworkCodec], dict[str, np.ndarray], Callable[..., Any]]] = {
        "image": (ImageCodec, images(rng), peer_image),
        "spectrum": (SpectrumCodec, spectra(rng), peer_spectrum),
    }
    for kind, (cls, measurement, make_peer) in kinds.items():
        for size in args.sizes.split(","):
            codec = cls.fresh(size)  # type: ignore[attr-defined]
            peer_work = peer_tokens = None
            if size == "aion":
                peer, peer_work, codec = make_peer(measurement, args.device)
                codec.load_arrays({k: v.cpu().numpy() for k, v in peer.state_dict().items()})
                peer_tokens = peer_work().cpu().numpy()
            gflop = flops(codec.to(args.device), measurement)
            for precision in precisions:
                codec.to(args.device, precision)
                ours = rate(lambda c=codec, m=measurement: c.encode(m), args.seconds) * BATCH
                equal = f"{(codec.encode(measurement) == peer_tokens).mean():.4f}" if peer_tokens is not None else ""
                beside = 0.0
                if peer_work is not None:
                    with torch.autocast(args.device, torch.bfloat16, enabled=precision == "bf16"):
                        beside = rate(peer_work, args.seconds) * BATCH
                    line(kind, size, precision, "peer", beside, gflop, limit[precision], "", "")
                line(kind, size, precision, "ours", ours, gflop, limit[precision],
                     f"{ours / beside:.2f}" if beside else "", equal)  # fmt: skip


def line(
    kind: str, size: str, dtype: str, who: str, objects: float, gflop: float, limit: float, peer: str, equal: str
) -> None:
    done = objects * gflop
    cells = [kind, size, dtype, who, f"{objects:,.2f}", f"{gflop:,.2f}", f"{done:,.0f}", f"{done / limit:.0%}"]
    print("| " + " | ".join([*cells, peer, equal]) + " |", flush=True)


if __name__ == "__main__":
    main()

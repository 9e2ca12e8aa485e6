"""The smallest codec with a network: a linear autoencoder of vectors with a rounding quantizer."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from skycairn.tokenizers.codec import Layout
from skycairn.tokenizers.network import Loss, NetworkCodec
from skycairn.tokenizers.registry import CODECS

LEVELS = 9


class Network(nn.Module):
    def __init__(self, width, codes):
        super().__init__()
        self.down, self.up = nn.Linear(width, codes), nn.Linear(codes, width)
        self.noise = nn.Dropout(0.1)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))


class LinearCodec(NetworkCodec):
    """`flux`, `ivar` and `mask` (n, ...), of which the first pixels of each source are looked at."""

    kind = "linear test"
    vocabulary = LEVELS
    ordered = True

    def __init__(self, width=12, codes=4, network=None, seed=0, gain=1.0):
        torch.manual_seed(seed)
        super().__init__(network or Network(width, codes))
        self.width, self.n_codes, self.gain = width, codes, gain
        self.layout = Layout("line", (codes,))

    def settings(self):
        return {"width": self.width, "codes": self.n_codes, "gain": self.gain}

    @classmethod
    def restore(cls, settings, arrays):
        return cls(settings["width"], settings["codes"], gain=settings["gain"]).load_arrays(arrays)

    def tensors(self, measurement, first_row=0):
        n = len(measurement["flux"])
        flux = np.asarray(measurement["flux"], np.float32).reshape(n, -1)[:, : self.width]
        good = ~measurement["mask"].reshape(n, -1)[:, : self.width] & np.isfinite(flux)
        return {
            "flux": torch.from_numpy(np.where(good, self.gain * flux, 0).astype(np.float32)),
            "good": torch.from_numpy(good.astype(np.float32)),
        }

    def _latent(self, tensors):
        z = torch.tanh(self.network.down(tensors["flux"]).float()) * (LEVELS // 2)
        return z + (z.round() - z).detach()

    def codes(self, tensors):
        return self._latent(tensors).round().long() + LEVELS // 2

    def measured(self, indices):
        return {"flux": self.network.up((indices - LEVELS // 2).float()).float()}

    def loss(self, tensors):
        z = self._latent(tensors)
        found = self.network.up(self.network.noise(z)).float()
        if self.network.training:
            self.network.seen += 1
        total = (tensors["good"] * (found - tensors["flux"]) ** 2).mean()
        parts = {"chi2": total.detach(), "size": F.relu(z).mean().detach()}
        return Loss(total, parts, z.detach().round().long() + LEVELS // 2)


CODECS.setdefault(LinearCodec.kind, LinearCodec)

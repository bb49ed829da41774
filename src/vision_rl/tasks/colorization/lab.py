"""sRGB to CIELAB and back (D65, 2 degree observer)."""

import numpy as np
import torch


# sRGB's primaries and the white of D65 (IEC 61966-2-1, ASTM E308), with the digits that scikit-image has.
_PRIMARIES = np.array([[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]])
_WHITE = np.array([0.95047, 1.0, 1.08883])
_XYZ_OF_RGB = _PRIMARIES / _WHITE[:, None]  # XYZ relative to the white
_RGB_OF_XYZ = np.linalg.inv(_XYZ_OF_RGB)


def rgb_to_lab(rgb: torch.Tensor) -> torch.Tensor:
    """sRGB to CIELAB, equal to scikit-image's `rgb2lab`: to 1e-4 in float32, to 1e-10 in float64.

    Args:
        rgb: `(..., 3)`, float32 or float64, from 0 to 1.

    Returns:
        `(..., 3)` of the same type: L from 0 to 100, a and b within about 110 of 0. a and b are differences of numbers
        near 1 times 500 and 200, which is where float32 loses the digits.
    """
    rgb = rgb.movedim(-1, 0).contiguous()  # (3, ...): whole planes are faster than triples
    linear = torch.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    xyz = _mix(linear, _XYZ_OF_RGB)
    x, y, z = torch.where(xyz > 0.008856, xyz ** (1 / 3), 7.787 * xyz + 16 / 116)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)]).movedim(0, -1)


def lab_to_rgb(lab: torch.Tensor) -> torch.Tensor:
    """CIELAB `(..., 3)` to sRGB from 0 to 1; colours that sRGB cannot show are clipped in each channel."""
    lightness, a, b = lab.unbind(-1)
    y = (lightness + 16) / 116
    f = torch.stack([y + a / 500, y, (y - b / 200).clamp(min=0)])  # (3, ...)
    xyz = torch.where(f > 0.2068966, f**3, (f - 16 / 116) / 7.787)
    linear = _mix(xyz, _RGB_OF_XYZ).clamp(0, 1)
    rgb = torch.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear)
    return rgb.clamp(0, 1).movedim(0, -1)


def _mix(planes: torch.Tensor, weights: np.ndarray) -> torch.Tensor:
    """Compute `weights (3, 3) @ planes (3, ...)` term by term: autocast would run a matrix product in bfloat16."""
    first, second, third = planes
    return torch.stack([(first * a).add_(second, alpha=b).add_(third, alpha=c) for a, b, c in weights.tolist()])

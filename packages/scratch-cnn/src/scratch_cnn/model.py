r"""LeNet-5: the convolutional network that read cheques, as in the paper and as it is taught today.

Source: LeCun, Bottou, Bengio and Haffner 1998, "Gradient-Based Learning Applied to Document Recognition",
http://yann.lecun.com/exdb/publis/pdf/lecun-98.pdf, section II.B and figure 2.

    image 32x32 -> C1 6@28x28 -> S2 6@14x14 -> C3 16@10x10 -> S4 16@5x5 -> C5 120 -> F6 84 -> output 10

C1, C3 and C5 are 5x5 convolutions without padding, S2 and S4 halve the resolution, F6 is linear, and $f$ follows each
of them. In the paper $f$ is a squashing function, subsampling has a trainable coefficient and bias for each map, and
the output is the distance of F6 from a picture $w_i$ of each class ("radial basis function" units):

$$ f(a) = A \tanh(S a), \quad A = 1.7159,\ S = 2/3 \tag{5, 6} $$
$$ S2 = f\Big(\beta + \alpha \sum_{2 \times 2} C1\Big) \tag{II.B} $$
$$ y_i = \sum_j (x_j - w_{ij})^2 \tag{7} $$

Our logits are $-y_i$, so that the softmax cross-entropy is the paper's eq. 9 without its rubbish class
($j \to \infty$). The modern version has $f$ = ReLU, max pooling (which no $f$ follows) and a linear output layer.

Shapes: B batch, Y rows, X columns, C channels; R rows, S columns, O channels of the next map; F units of F6; M classes.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from scratch_core.errors import DataError
from scratch_core.layers import Linear
from scratch_core.vision import VisionModel, grad_cam

from scratch_cnn import convert
from scratch_cnn.codes import digit_codes
from scratch_cnn.config import CONNECTIONS, LeNet5Config


def scaled_tanh(x: jax.Array) -> jax.Array:
    """Return eq. 5 and 6: f(1) = 1 and f(-1) = -1, where the second derivative is largest."""
    return 1.7159 * jnp.tanh(x * (2 / 3))


def convolve(x_BYXC: jax.Array, kernel: jax.Array, bias_O: jax.Array) -> jax.Array:
    """Return a convolution without padding, kernel [rows, columns, C, O], in x's dtype."""
    y_BRSO = lax.conv_general_dilated(
        x_BYXC, kernel.astype(x_BYXC.dtype), (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return y_BRSO + bias_O.astype(x_BYXC.dtype)


class Convolution(nnx.Module):
    """C1, C5, and the C3 that reads all maps: 5 x 5, without padding."""

    def __init__(self, c_in: int, c_out: int, *, rngs: nnx.Rngs):
        self.kernel = nnx.Param(nnx.initializers.he_normal()(rngs.params(), (5, 5, c_in, c_out)))
        self.bias = nnx.Param(jnp.zeros(c_out))

    def __call__(self, x_BYXC: jax.Array) -> jax.Array:
        return convolve(x_BYXC, self.kernel[...], self.bias[...])


class TableConvolution(nnx.Module):
    """C3 by table I: 60 of the 96 pairs of maps have a kernel. Kernels are [60, 5, 5], in the order of the table."""

    def __init__(self, *, rngs: nnx.Rngs):
        pairs = [(i, o) for o, inputs in enumerate(CONNECTIONS) for i in inputs]
        self.inputs, self.outputs = zip(*pairs)
        fan_in = 25 * len(pairs) / len(CONNECTIONS)
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), (len(pairs), 5, 5)) * (2 / fan_in) ** 0.5)
        self.bias = nnx.Param(jnp.zeros(len(CONNECTIONS)))

    def __call__(self, x_BYXC: jax.Array) -> jax.Array:
        kernel = self.kernel[...]
        zeros = jnp.zeros((6, len(CONNECTIONS), 5, 5), kernel.dtype)
        full = zeros.at[jnp.array(self.inputs), jnp.array(self.outputs)].set(kernel)
        return convolve(x_BYXC, full.transpose(2, 3, 0, 1), self.bias[...])


class Subsampling(nnx.Module):
    """S2 and S4 of the paper, eq. II.B: f(coefficient * (sum of each 2 x 2 window) + bias), both learned per map."""

    def __init__(self, channels: int, f: Callable[[jax.Array], jax.Array]):
        self.coefficient = nnx.Param(jnp.full(channels, 0.25))
        self.bias = nnx.Param(jnp.zeros(channels))
        self.f = f

    def __call__(self, x_BYXC: jax.Array) -> jax.Array:
        coefficient_C, bias_C = self.coefficient[...].astype(x_BYXC.dtype), self.bias[...].astype(x_BYXC.dtype)
        return self.f(_pool(x_BYXC, 0, lax.add) * coefficient_C + bias_C)


class MaxPooling(nnx.Module):
    """S2 and S4 of the modern version: the maximum of each 2 x 2 window."""

    def __call__(self, x_BYXC: jax.Array) -> jax.Array:
        return _pool(x_BYXC, -jnp.inf, lax.max)


def _pool(x_BYXC: jax.Array, start: float, combine) -> jax.Array:
    return lax.reduce_window(x_BYXC, start, combine, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


class DigitDistance(nnx.Module):
    """Eq. 7, negated: minus the squared distance of the 84 units of F6 from the picture of each digit.

    It has no parameters. ``replace_head`` reads ``in_features`` and ``dtype`` to put a linear layer in its place.
    """

    in_features = 84

    def __init__(self, *, dtype):
        self.dtype = dtype

    def __call__(self, x_BF: jax.Array) -> jax.Array:
        codes_MF = jnp.asarray(digit_codes())
        return -jnp.square(x_BF[:, None].astype(jnp.float32) - codes_MF).sum(axis=-1)  # eq. 7


class LeNet5(VisionModel):
    """The classifier. Call it on images [B, 32, 32, C]."""

    Config = LeNet5Config
    architectures = ("LeNet5",)
    rules = staticmethod(convert.rules)

    def __init__(self, config: LeNet5Config, *, dtype=jnp.float32, rngs: nnx.Rngs):
        self.config, self.dtype = config, dtype
        f = scaled_tanh if config.activation == "tanh" else jax.nn.relu
        subsampling = config.pooling == "subsampling"
        self.c1 = Convolution(config.num_channels, 6, rngs=rngs)
        self.s2 = Subsampling(6, f) if subsampling else MaxPooling()
        self.c3 = TableConvolution(rngs=rngs) if config.connection_table else Convolution(6, 16, rngs=rngs)
        self.s4 = Subsampling(16, f) if subsampling else MaxPooling()
        self.c5 = Convolution(16, 120, rngs=rngs)
        self.f6 = Linear(120, 84, dtype=dtype, rngs=rngs)
        if config.output == "linear":
            self.classifier = Linear(84, config.num_classes, dtype=dtype, rngs=rngs)
        else:
            self.classifier = DigitDistance(dtype=dtype)
        self.f = f

    def features(self, images_BYXC: jax.Array) -> jax.Array:
        """Return the maps of C3, [B, 10, 10, 16]. Raises DataError for images that are not 32 x 32."""
        if images_BYXC.ndim != 4 or images_BYXC.shape[1:] != (32, 32, self.config.num_channels):
            raise DataError(
                f"images of shape {images_BYXC.shape} must be [batch, 32, 32, {self.config.num_channels}]: "
                "resize or pad them"
            )
        c1_BRSO = self.f(self.c1(images_BYXC.astype(self.dtype)))
        return self.f(self.c3(self.s2(c1_BRSO)))

    def after_features(self, x_BYXC: jax.Array) -> jax.Array:
        """Return the 84 units of F6 from the maps of C3."""
        c5_B11C = self.f(self.c5(self.s4(x_BYXC)))
        return self.f(self.f6(c5_B11C[:, 0, 0]))

    def hidden(self, images_BYXC: jax.Array) -> jax.Array:
        """Return the 84 units of F6."""
        return self.after_features(self.features(images_BYXC))

    def __call__(self, images_BYXC: jax.Array) -> jax.Array:
        """Return logits [B, num_classes]."""
        return self.classifier(self.hidden(images_BYXC))

    def saliency(self, images: jax.Array, classes_B: jax.Array) -> jax.Array:
        """Return Grad-CAM of the maps of C3, the last convolution with several positions: heat [B, 10, 10] >= 0."""
        return grad_cam(lambda x_BYXC: self.classifier(self.after_features(x_BYXC)), self.features(images), classes_B)

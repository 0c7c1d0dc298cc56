"""Models of linear recurrences (LRU, RG-LRU), scanned in parallel: the Griffin language model.

Letters in shape comments: B batch, L length, D width of the input, W width of the state, H heads, K
width of a head.
"""

import math
from typing import Annotated, Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxbig.arrays.dtypes import HIGHEST, upcast
from jaxbig.constraints import NonNegativeInt, PositiveInt, Range, choose, validate
from jaxbig.errors import Refused
from jaxbig.models.layers.attention import Attention
from jaxbig.models.layers.basic import Linear
from jaxbig.models.layers.parameters import constrain, parameter
from jaxbig.models.linear_recurrent import CausalConv, Continued, LinearRecurrentModel

Magnitude = Annotated[float, Range(float, gt=0, lt=1)]
RecurrenceName = Literal["rglru", "lru"]


def recurrence(
    module: nn.Module, decay: jax.Array, x: jax.Array, continued: Continued | None
) -> jax.Array:
    """`associative`, from the last state of the call before if there is one."""
    if continued is None:
        return associative(decay, x)
    x = continued.without_padding(x)
    kept = module.variable("cache", "state", lambda: jnp.zeros_like(x[:, 0]))
    states = associative(decay, x.at[:, 0].add(decay[:, 0] * kept.value))
    kept.value = states[:, -1]
    return states


def associative(decay: jax.Array, x: jax.Array) -> jax.Array:
    """h_t = decay_t * h_(t-1) + x_t from h_(-1) = 0, for all t at once; both [B, L, W] -> [B, L,
    W].

    Steps (a, x) compose to a step: (a2 a1, a2 x1 + x2); so they reduce in log L rounds (Blelloch,
    1990).
    """

    def compose(first: tuple[jax.Array, jax.Array], second: tuple[jax.Array, jax.Array]) -> Any:
        return second[0] * first[0], second[0] * first[1] + second[1]

    return jax.lax.associative_scan(compose, (decay, x), axis=1)[1]


class LRU(nn.Module):
    """Linear recurrent unit (Orvieto et al., 2023, equations 3 to 7), over a diagonal of complex
    numbers:

        h_t = lambda h_(t-1) + exp(gamma) B x_t,    y_t = Re(C h_t) + d x_t
        lambda = exp(-exp(nu) + i exp(theta))

    |lambda| starts in a ring from `smallest` to `largest`, and gamma at log sqrt(1 - |lambda|^2).
    In float32.
    """

    width: PositiveInt
    """W, of the complex state."""
    smallest: Magnitude = 0.9
    """The smallest |lambda| at the start."""
    largest: Magnitude = 0.999
    """The largest |lambda| at the start, below 1; a large one remembers long."""
    phase: float = math.tau
    """The largest angle of lambda at the start; a small one remembers slow changes."""

    def check_fields(self) -> None:
        if self.smallest >= self.largest:
            raise Refused(f"smallest {self.smallest}: it must be below its largest {self.largest}.")

    def setup(self) -> None:
        validate(self)

    def ring(
        self, key: jax.Array, shape: Any, dtype: Any = None, out_sharding: Any = None
    ) -> jax.Array:
        """Initial nu: |lambda|^2 uniform, as of points uniform over the ring's area."""
        square = jax.random.uniform(
            key, shape, dtype or jnp.float32, self.smallest**2, self.largest**2
        )
        return jnp.log(-0.5 * jnp.log(square))

    @nn.compact
    def __call__(self, x: jax.Array, continued: Continued | None = None) -> jax.Array:
        """[B, L, D] -> [B, L, D]."""
        width = x.shape[-1]
        one = ("hidden",)
        real = upcast(x)
        nu = parameter(self, "nu", self.ring, (self.width,), one, real.dtype)

        def angles(
            key: jax.Array, shape: Any, dtype: Any = None, out_sharding: Any = None
        ) -> jax.Array:
            return jnp.log(
                jax.random.uniform(key, shape, dtype or jnp.float32, 1e-4 * self.phase, self.phase)
            )

        def normalizing(
            key: jax.Array, shape: Any, dtype: Any = None, out_sharding: Any = None
        ) -> jax.Array:
            return 0.5 * jnp.log(-jnp.expm1(-2 * jnp.exp(nu)))

        theta = parameter(self, "theta", angles, (self.width,), one, real.dtype)
        gamma = parameter(self, "gamma", normalizing, (self.width,), one, real.dtype)
        into, out = (nn.initializers.normal(std) for std in ((2 * width) ** -0.5, self.width**-0.5))
        shapes = (2, width, self.width), (2, self.width, width)
        # the real parts, then the imaginary ones
        b = parameter(self, "input", into, shapes[0], (None, "embed", "hidden"), real.dtype)
        c = parameter(self, "output", out, shapes[1], (None, "hidden", "embed"), real.dtype)
        d = parameter(self, "skip", nn.initializers.normal(1.0), (width,), (None,), real.dtype)

        driven = (
            jnp.einsum("bld,cdw->cblw", real, b, precision=HIGHEST)
            * jnp.exp(gamma)[None, None, None]
        )
        decay = jnp.exp(jax.lax.complex(-jnp.exp(nu), jnp.exp(theta)))[None, None]
        decay = jnp.broadcast_to(decay, driven.shape[1:])
        states = recurrence(self, decay, jax.lax.complex(driven[0], driven[1]), continued)
        states = constrain(states, "batch", "length", "hidden")
        of_real = jnp.tensordot(states.real, c[0], axes=1, precision=HIGHEST)
        y = of_real - jnp.tensordot(states.imag, c[1], axes=1, precision=HIGHEST)
        return constrain((y + real * d[None, None]).astype(x.dtype), "batch", "length", None)


class RGLRU(nn.Module):
    """Real-gated linear recurrent unit (De et al., 2024, equations 1 to 4); its gates take a head's
    part of x each:

        r_t = sigmoid(W_a x_t + b_a),    i_t = sigmoid(W_x x_t + b_x)
        a_t = sigmoid(Lambda)^(c r_t),    h_t = a_t h_(t-1) + sqrt(1 - a_t^2) (i_t x_t)

    sigmoid(Lambda)^c starts between 0.9 and 0.999. In float32: bf16 has no number between 0.996 and
    1.
    """

    heads: PositiveInt = 1
    """Blocks of the gates' block-diagonal weights."""
    power: float = 8.0
    """c."""

    def slow(
        self, key: jax.Array, shape: Any, dtype: Any = None, out_sharding: Any = None
    ) -> jax.Array:
        a = jax.random.uniform(key, shape, dtype or jnp.float32, 0.9, 0.999) ** (1 / self.power)
        return jnp.log(a) - jnp.log1p(-a)

    @nn.compact
    def __call__(self, x: jax.Array, continued: Continued | None = None) -> jax.Array:
        """[B, L, W] -> [B, L, W]."""
        batch, length, width = x.shape
        if self.heads < 1 or width % self.heads:
            raise Refused(
                f"width {width} does not divide into heads {self.heads}: make it a multiple."
            )
        head = width // self.heads
        real = upcast(x)
        init = nn.initializers.variance_scaling(1.0, "fan_in", "normal", 2, 3, (0, 1))
        kernel = parameter(
            self,
            "gates",
            init,
            (2, self.heads, head, head),
            (None, "heads", None, None),
            real.dtype,
        )
        bias = parameter(
            self,
            "bias",
            nn.initializers.zeros,
            (2, self.heads, head),
            (None, "heads", None),
            real.dtype,
        )
        parts = real.reshape(batch, length, self.heads, head)
        gates = jnp.einsum("blhk,chkj->cblhj", parts, kernel, precision=HIGHEST)
        gates = nn.sigmoid(gates + bias[:, None, None]).reshape(2, batch, length, width)
        slowness = parameter(self, "lambda", self.slow, (width,), ("hidden",), real.dtype)
        log_a = -self.power * gates[0] * nn.softplus(-slowness)[None, None]
        # bounded from below: the root has no derivative at 0
        driven = jnp.sqrt(jnp.maximum(-jnp.expm1(2 * log_a), 1e-6)) * (gates[1] * real)
        states = recurrence(self, jnp.exp(log_a), driven, continued)
        return constrain(states.astype(x.dtype), "batch", "length", "hidden")


class RecurrentMixing(nn.Module):
    """Griffin's recurrent block (De et al., 2024, section 2.3): GELU branch times convolution and
    recurrence."""

    heads: PositiveInt
    """Blocks of the gates' kernels."""
    recurrence: RecurrenceName
    """rglru or lru."""

    @nn.compact
    def __call__(self, x: jax.Array, continued: Continued | None = None) -> jax.Array:
        """[B, L, D] -> [B, L, D]."""
        width = x.shape[-1]
        axes = ("embed", "hidden")
        gate = nn.gelu(Linear((width,), axes, name="gate")(x))
        y = CausalConv(name="convolution")(Linear((width,), axes, name="input")(x), continued)
        y = constrain(y, "batch", "length", "hidden")
        y = (
            RGLRU(self.heads, name="recurrence")(y, continued)
            if choose("recurrence", self.recurrence, RecurrenceName) == "rglru"
            else LRU(width, name="recurrence")(y, continued)
        )
        return Linear((width,), ("hidden", "embed"), name="out")(
            constrain(gate * y, "batch", "length", "hidden")
        )


class Griffin(LinearRecurrentModel):
    """A language model of gated linear recurrences and local attention (De et al., 2024), two
    blocks to one."""

    heads: PositiveInt = 4
    """Of the attention's queries, and blocks of the recurrence's gates."""
    kv_heads: PositiveInt = 1
    """Of the attention's keys and values."""
    window: PositiveInt = 1024
    """Positions that attention sees, itself included."""
    attention_every: NonNegativeInt = 3
    """Every k-th block is local attention; 0: never (Hawk)."""
    recurrence: RecurrenceName = "rglru"
    """rglru (De et al., 2024), gated, or lru (Orvieto et al., 2023)."""

    @nn.nowrap
    def mixing(self, block: int, x: jax.Array, continued: Continued | None) -> jax.Array:
        """[B, L, D] -> [B, L, D], by attention in every k-th block."""
        if self.attention_every and block % self.attention_every == self.attention_every - 1:
            fields = {
                "kv_heads": self.kv_heads,
                "causal": True,
                "window": self.window,
                "rotary": True,
            }
            attention = Attention(heads=self.heads, **fields, name=f"attention_{block}")
            places = {} if continued is None else vars(continued)
            return attention(x, **places)
        mixing = RecurrentMixing(self.heads, self.recurrence, name=f"recurrent_{block}")
        return mixing(x, continued)

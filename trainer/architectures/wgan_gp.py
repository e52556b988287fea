"""WGAN-GP with a trained encoder (Gulrajani et al., NeurIPS 2017; S1): what no generator of healthy pictures can draw.

    shipped   picture ─ encoder ─► ẑ ─ generator ─► G(ẑ)        |picture - G(ẑ)| is the mask of the fault

    1  generator and critic   E[D(G(z))] - E[D(x)] + 10·E[(||∇D(x̂)|| - 1)²], z ~ N(0, I)
    2  encoder                ||x - G(E(x))||² + 0.1·||f(x) - f(G(E(x)))||² + 0.1·||z - E(G(z))||², f inside the critic
    3  encoder and generator  the same, with noise on ẑ and ||ẑ||² kept small

S1 searches ẑ by gradient descent for every picture, which no device has the time for; the encoder answers at once
(our choice, after f-AnoGAN: Schlegl et al., Med. Image Anal. 54, 2019). Stage 3 is ours too: a generator trained for
minutes and not for days draws plausible pictures but not each healthy one, and its encoder has nothing to find. The
noise leaves ẑ too narrow a channel for what healthy pictures never show.
"""

from __future__ import annotations

import math
from typing import Any

from trainer.architectures import _blocks

SCORE = {"kind": "gan"}
CONTEXT = {"over": "frames", "width": 64, "hop": 64}
INPUT = "range"

#: S1's pictures and the first layer of its generator for them; its Adam has these decays.
SIDE, START = 28, 4
BETA_1, BETA_2 = 0.0, 0.9


def build(
    shape: tuple[int, int], *, latent: int = 128, ngf: int = 16, encoder: int = 16, channels: int = 1
) -> Any:
    """Takes (width, F) in [0, 1], returns (G(ẑ) (width, F) in (0, 1), ẑ (latent,)).

    ngf     : channels of the generator's last hidden layer (S1: 64)
    encoder : channels of the encoder's first layer

    Pictures of 28 × 28 get S1's generator, 4 → 8 → 12 → 28; others resizes and convolutions.
    """
    import keras
    from keras import layers

    inputs = keras.Input(shape)
    x = _blocks.picture(inputs, shape, channels)
    for n in _widths(x, encoder):
        x = layers.Conv2D(n, 5, strides=2, padding="same", use_bias=False)(x)
        x = layers.LeakyReLU(0.1)(layers.BatchNormalization(momentum=0.9)(x))
    z = layers.Dense(latent, name="z")(layers.Flatten()(x))
    return keras.Model(inputs, [_generated(z, shape, channels, ngf), z])


def _generated(z: Any, shape: tuple[int, int], channels: int, ngf: int) -> Any:
    """z (latent,) -> (width, F)."""
    from keras import layers

    if shape != (SIDE, SIDE) or channels != 1:
        return _blocks.decoder(z, shape, channels, ngf, "sigmoid")

    def norm(x: Any) -> Any:
        # Our choice: without it the fine-tuning of dark pictures sometimes ends in their mean, whatever ẑ.
        return layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))

    x = layers.Reshape((START, START, 4 * ngf))(norm(layers.Dense(START * START * 4 * ngf)(z)))
    x = norm(layers.Conv2DTranspose(2 * ngf, 5)(x))
    x = norm(layers.Conv2DTranspose(ngf, 5)(x))
    # Stride 2 and kernel 8 make 30 of 12; S1 pads by one, which is to say that it cuts one off every edge.
    x = layers.Cropping2D(1)(layers.Conv2DTranspose(1, 8, strides=2)(x))
    return layers.Reshape(shape)(layers.Activation("sigmoid")(x))


def _widths(x: Any, base: int) -> list[int]:
    """Channels of convolutions that halve a picture until 4 pixels are left, at most four: three for 28 and for 32."""
    side = max(2, min(int(x.shape[1]), int(x.shape[2])))
    return [base << k for k in range(min(4, max(1, math.ceil(math.log2(side / 4)))))]


def critic(shape: tuple[int, int], ndf: int, channels: int = 1) -> Any:
    """(width, F) -> (D (1,), f (d,)): convolutions of kernel 5 and stride 2, then dense; no limit to either.

    Without BatchNorm: the penalty is on the gradient of one picture, whatever the others of its batch.
    """
    import keras
    from keras import layers

    inputs = keras.Input(shape)
    x = _blocks.picture(inputs, shape, channels)
    for n in _widths(x, ndf):
        x = layers.LeakyReLU(0.2)(layers.Conv2D(n, 5, strides=2, padding="same")(x))
    x = layers.Flatten()(x)
    return keras.Model(inputs, [layers.Dense(1)(x), x])


def gradient_penalty(value: Any, real: Any, fake: Any, share: Any) -> Any:
    """(||∇D(x̂)||₂ - 1)² of each picture, x̂ = real + share · (fake - real); 0 where D rises by 1 a unit everywhere.

    value : (n, width, F) -> (n, 1); real, fake : (n, width, F); share : (n,) in [0, 1]
    """
    import tensorflow as tf

    between = real + share[:, tf.newaxis, tf.newaxis] * (fake - real)
    with tf.GradientTape() as tape:
        tape.watch(between)
        answer = value(between)
    # The square root has no slope at 0, and a critic just begun may well be flat.
    norm = tf.sqrt(tf.reduce_sum(tape.gradient(answer, between) ** 2, [1, 2]) + 1e-12)
    return (norm - 1.0) ** 2


def train(
    network: Any,
    course: Any,
    *,
    ndf: int = 16,
    n_critic: int = 5,
    penalty: float = 10.0,
    gan_learning_rate: float = 1e-4,
    encoder_epochs: int = 20,
    tune_epochs: int = 60,
    settle_epochs: int = 0,
    features: float = 0.1,
    cycle: float = 0.1,
    noise: float = 1.0,
    shrink: float = 0.1,
    vary_noise: bool = True,
) -> None:
    """Generator and critic for train.epochs, then the encoder, then both together.

    ndf, n_critic, penalty : channels of the critic's first layer, its steps for one of the generator, weight of the
                   gradient penalty; an epoch shows the critic every picture once
    gan_learning_rate : of stage 1 (S1: 1e-4); the other stages have train.learning_rate
    encoder_epochs, tune_epochs : of stages 2 and 3; 0 leaves the stage out
    settle_epochs : of stage 3 after these, at a tenth of train.learning_rate, where the loss goes up and down
    features, cycle : weights of the critic's features and of E(G(z)) = z beside the squared error
    noise, shrink : in stage 3, deviation of the noise on ẑ and weight of ||ẑ||², both reached half-way: from the
                   beginning they would press ẑ to nothing before the generator knows what to do with it
    vary_noise   : another share of the noise for every picture, evenly from 0 to 1, so that the generator is also shown
                   what it will be asked for: ẑ without any
    """
    import keras

    tf, how = course.tf, course.how
    if n_critic < 1:
        raise ValueError(
            f"n_critic is {n_critic}; expected 1 or more steps of the critic for one of the generator"
        )
    picture, z = network.outputs
    encode, generate = keras.Model(network.input, z), keras.Model(z, picture)
    judge = critic(network.input_shape[1:], ndf, int(course.recipe.network.get("channels", 1)))
    _adversarial(generate, judge, course, n_critic, penalty, gan_learning_rate)
    judge.trainable = False
    seed = keras.random.SeedGenerator(how.seed)
    strength = tf.Variable(0.0)

    class Noise(keras.layers.Layer):  # type: ignore[misc]
        """ẑ + strength · noise · N(0, I) while training."""

        def call(self, z: Any, training: bool = False) -> Any:
            if not training:
                return z
            added = strength * noise * keras.random.normal(tf.shape(z), seed=seed)
            return z + (added * keras.random.uniform((tf.shape(z)[0], 1), seed=seed) if vary_noise else added)

    def loss(outputs: Any, x: Any, y: Any) -> Any:
        drawn, code = outputs
        value = tf.reduce_sum((x - drawn) ** 2, [1, 2]) + strength * shrink * tf.reduce_sum(code**2, 1)
        if features:
            value += features * tf.reduce_sum((judge(x)[1] - judge(drawn)[1]) ** 2, 1)
        if cycle:
            told = keras.random.normal(tf.shape(code), seed=seed)
            value += cycle * tf.reduce_sum((encode(generate(told)) - told) ** 2, 1)
        return value

    if encoder_epochs:
        generate.trainable = False
        course.descend(
            "encoder", network, loss, epochs=encoder_epochs, overlap=how.overlap, name="encoder_loss"
        )
        generate.trainable = True
    noisy = keras.Model(network.input, [generate(Noise()(z)), z])
    done = iter(range(tune_epochs))
    for stage, epochs, rate, before in (
        ("fine-tune", tune_epochs, how.learning_rate, lambda: strength.assign(min(1.0, 0.1 + 1.8 * next(done) / tune_epochs))),
        ("settle", settle_epochs, 0.1 * how.learning_rate, lambda: strength.assign(1.0)),
    ):  # fmt: skip
        if epochs:
            course.descend(
                stage, noisy, loss, epochs=epochs, overlap=how.overlap, name="tune_loss", learning_rate=rate,
                before_epoch=before,
            )  # fmt: skip


def _adversarial(
    generate: Any, judge: Any, course: Any, n_critic: int, penalty: float, learning_rate: float
) -> None:
    """Stage 1 in place: `n_critic` steps of the critic, one of the generator, until train.epochs are over."""
    import keras

    tf, how, x = course.tf, course.how, course.data.x
    latent = generate.input_shape[1]
    artist, expert = (keras.optimizers.Adam(learning_rate, BETA_1, BETA_2) for _ in range(2))
    artist.build(generate.trainable_variables)
    expert.build(judge.trainable_variables)
    patches = tf.TensorSpec((None, *x.shape[1:]), tf.float32)
    codes, shares = tf.TensorSpec((None, latent), tf.float32), tf.TensorSpec((None,), tf.float32)

    @tf.function(input_signature=[patches, codes, shares])  # type: ignore[untyped-decorator]
    def judged(real: Any, z: Any, share: Any) -> Any:
        fake = generate(z, training=True)
        with tf.GradientTape() as tape:
            distance = tf.reduce_mean(judge(real)[0]) - tf.reduce_mean(judge(fake)[0])
            slope = gradient_penalty(lambda h: judge(h)[0], real, fake, share)
            value = penalty * tf.reduce_mean(slope) - distance
        expert.apply_gradients(_pairs(tape, value, judge))
        return distance

    @tf.function(input_signature=[codes])  # type: ignore[untyped-decorator]
    def drawn(z: Any) -> None:
        with tf.GradientTape() as tape:
            value = -tf.reduce_mean(judge(generate(z, training=True))[0])
        artist.apply_gradients(_pairs(tape, value, generate))

    def told(n: int) -> Any:
        return course.rng.standard_normal((n, latent), dtype="float32")

    steps = 0
    for epoch in range(1, how.epochs + 1):
        order = course.rng.permutation(len(x))[: max(1, round(len(x) / how.overlap))]
        distances = []
        for i in range(0, len(order), how.batch):
            real = x[order[i : i + how.batch]]
            distances.append(
                float(judged(real, told(len(real)), course.rng.random(len(real), dtype="float32")))
            )
            steps += 1
            if steps % n_critic == 0:
                drawn(told(how.batch))
        course.note("generator", epoch, how.epochs, {"critic_distance": sum(distances) / len(distances)})
    course.figures["generator_steps"] = float(steps // n_critic)


def _pairs(tape: Any, value: Any, model: Any) -> Any:
    variables = model.trainable_variables
    return zip(tape.gradient(value, variables), variables, strict=True)

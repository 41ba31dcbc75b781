"""What a model does to frequencies: pure functions from arrays and models to tables.

`graphs`, `mixing`, `response`, `random_mixers`, `mixers`: graph frequency response (SPANetV2
Fig. 1). `taps`, `spectrum`: log-amplitude of feature maps (SPANet Fig. 2, SPANetV2 Fig. 3).
`filters`: SRF, SPF, context maps (SPANet Fig. 4). `decisions`, `shape_bias`, `stimuli`: shape bias
(SPANetV2 Fig. 4). `cam`: class activation maps. `robustness`: accuracy by frequency.

Nothing here draws: `figures` does, from tables alone. Nothing here knows Lightning or MLflow.
"""

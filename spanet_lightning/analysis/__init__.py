"""What a model does to frequencies: from models and arrays to tables and figures.

`graphs`, `response`, `mixers`: frequency response on a graph (SPANetV2 Fig. 1). `layers`,
`spectrum`: log amplitude and variance of feature maps (SPANet Fig. 2, SPANetV2 Fig. 3).
`filters`: SRF, SPF, context maps (SPANet Fig. 4). `trials`, `shape_bias`: shape bias (SPANetV2
Fig. 4) and error consistency. `cam`, `road`: class activation maps and their faithfulness.
`robustness`: accuracy by frequency, Fourier heat maps. `hessian`: curvature of the loss.

Each module measures, and describes its figure; `figures` draws and saves it. Nothing here depends
on Lightning or MLflow.
"""

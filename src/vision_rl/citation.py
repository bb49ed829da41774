"""The paper that this library implements, as BibTeX."""

CITATION = r"""@inproceedings{pinto2023tuning,
    title = {Tuning computer vision models with task rewards},
    author = {Pinto, Andr{\'e} Susano and Kolesnikov, Alexander and Shi, Yuge and Beyer, Lucas and Zhai, Xiaohua},
    booktitle = {International Conference on Machine Learning},
    year = {2023},
    url = {https://arxiv.org/abs/2302.08242}
}"""

"""Output alignment (eqs. 2-4): masks as pictures that the autoencoder can encode, and back."""

from ldis_lightning.alignment.pseudo_masks import Additive, Augmented, Perturbed, PseudoMask, Vanilla

__all__ = ["Additive", "Augmented", "Perturbed", "PseudoMask", "Vanilla"]

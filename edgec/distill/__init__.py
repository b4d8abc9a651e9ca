"""Students trained and models healed: the IR run differentiably in torch. The only part of edgec that imports torch."""

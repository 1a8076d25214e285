"""What the labels of head CT data sets say, in one place: the same finding has the same name in each of them."""

from __future__ import annotations

CT_FINDINGS = {
    "ich": "any bleed inside the skull",
    "iph": "a bleed within the brain's tissue (intraparenchymal)",
    "ivh": "a bleed within the ventricles (intraventricular)",
    "sdh": "a subdural bleed",
    "edh": "an extradural (epidural) bleed",
    "sah": "a subarachnoid bleed",
    "bleed_left": "a bleed in the left hemisphere",
    "bleed_right": "a bleed in the right hemisphere",
    "chronic_bleed": "a chronic bleed",
    "fracture": "a fracture of the skull",
    "calvarial_fracture": "a fracture of the skull's vault",
    "other_fracture": "a fracture elsewhere in the skull",
    "mass_effect": "structures pushed aside",
    "midline_shift": "the midline displaced",
    "hydrocephalus": "ventricles too wide",
    "post_operative": "what an operation leaves: a shunt, a piece of skull missing",
    "artefact": "metal, motion or noise spoil the image",
    "wrong_orientation": "the image lies otherwise than its header says",
    "wrong_registration": "the image does not lie where registration should have put it",
}

"""Which images of a folder to calibrate on: measured, freed of copies, chosen, and shown.

`make.calibration_set` is the whole way; the other modules are its steps, in this order: `facts`
(with `perceptual_hash`), `reading`, `copies`, `strata`, `choice`, `coverage`, `contact_sheet`
(with `lettering`), `files`. They need Pillow.
"""

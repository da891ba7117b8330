"""PENN: arrays in, arrays out. Knows no DICOM, no ledger, no Celery."""

"""The hot path: raw frames in, row batches out.  See README.md in this folder."""

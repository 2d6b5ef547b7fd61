"""A model repository in one file, bit for bit: `tritonpress pack` and `tritonpress unpack`.

    header   64 bytes: magic, version, where the index begins, how long it is, its sha256
    blocks   one behind the other, without gaps, in the order of the index
    index    JSON: what the blocks are, and which of them make up each file

A file is a sequence of contents (a tensor, or what lies between tensors); a content that occurs twice, in a file or in
two models, is stored once. A content is coded in blocks of 256 KiB, each by itself. A block of FP32, BF16 or FP16 is
split into byte planes: the sign bit is moved from the top to the bottom of each word, so that the exponents of FP32 and
BF16 have a plane of their own, as in ZipNN (arXiv:2411.05239). A plane is a Zstandard frame, or stands as it is where
that is smaller.
"""

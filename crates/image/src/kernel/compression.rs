//! The compressions a kernel build can be configured with, told apart by their first bytes.

use super::KernelError;
use std::io::{self, Read};

const GZIP: &[u8] = b"\x1f\x8b";
const XZ: &[u8] = b"\xfd7zXZ\0";
const ZSTD: &[u8] = b"\x28\xb5\x2f\xfd";
/// The frame of `lz4 -l`: this magic, then {compressed size, block} until the end.
const LZ4_LEGACY: &[u8] = b"\x02\x21\x4c\x18";
const LZMA: &[u8] = b"\x5d\0\0";

/// Bytes of one uncompressed block in a legacy lz4 frame.
const LZ4_BLOCK: usize = 8 << 20;
/// Dictionaries of kernels are at most 128 MiB (`xz --lzma2=dict=128MiB` in the kernel's own build).
const LZMA_MEMORY_KIB: u32 = 160 << 10;

/// Decompresses `bytes`, ignoring what follows the compressed stream: kernel builds append the size there.
pub(super) fn decompress(what: &str, bytes: &[u8], limit: usize) -> Result<Vec<u8>, KernelError> {
    let failed =
        |format| move |source: io::Error| KernelError::Decompress { what: what.into(), format, source };
    let bounded = |reader: &mut dyn Read, format| {
        let mut out = Vec::new();
        reader.take(limit as u64 + 1).read_to_end(&mut out).map_err(failed(format))?;
        if out.len() > limit {
            return Err(KernelError::TooLarge { what: what.into(), limit });
        }
        Ok(out)
    };
    if bytes.starts_with(XZ) {
        let mut reader = lzma_rust2::XzReader::new_mem_limit(bytes, false, LZMA_MEMORY_KIB);
        bounded(&mut reader, "xz")
    } else if bytes.starts_with(ZSTD) {
        let mut source = bytes;
        let mut reader = ruzstd::decoding::StreamingDecoder::new(&mut source)
            .map_err(io::Error::other)
            .map_err(failed("zstd"))?;
        bounded(&mut reader, "zstd")
    } else if bytes.starts_with(GZIP) {
        bounded(&mut flate2::read::GzDecoder::new(bytes), "gzip")
    } else if bytes.starts_with(LZ4_LEGACY) {
        lz4_legacy(&bytes[LZ4_LEGACY.len()..], limit)
            .map_err(failed("lz4"))?
            .ok_or_else(|| KernelError::TooLarge { what: what.into(), limit })
    } else if bytes.starts_with(LZMA) {
        let mut reader = lzma_rust2::LzmaReader::new_mem_limit(bytes, LZMA_MEMORY_KIB, None)
            .map_err(io::Error::other)
            .map_err(failed("lzma"))?;
        bounded(&mut reader, "lzma")
    } else {
        let magic = bytes[..bytes.len().min(6)].to_vec();
        Err(KernelError::UnknownCompression { what: what.into(), magic })
    }
}

/// `None` if the result would exceed `limit`.
fn lz4_legacy(mut rest: &[u8], limit: usize) -> io::Result<Option<Vec<u8>>> {
    let mut out = Vec::new();
    // Fewer bytes than a size and a block are the appended size, or nothing.
    while let Some((size, after)) = rest.split_first_chunk::<4>().filter(|(_, after)| !after.is_empty()) {
        let size = u32::from_le_bytes(*size) as usize;
        let block = after.get(..size).ok_or(io::ErrorKind::UnexpectedEof)?;
        let start = out.len();
        out.resize(start + LZ4_BLOCK, 0);
        let written = lz4_flex::block::decompress_into(block, &mut out[start..]).map_err(io::Error::other)?;
        out.truncate(start + written);
        if out.len() > limit {
            return Ok(None);
        }
        rest = &after[size..];
    }
    Ok(Some(out))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::io::Write;

    pub(in crate::kernel) fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    pub(in crate::kernel) fn zstd(bytes: &[u8]) -> Vec<u8> {
        ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
    }

    /// One block without any match: a token, the long length, the literals.
    pub(in crate::kernel) fn lz4(bytes: &[u8]) -> Vec<u8> {
        let mut block = vec![0xf0];
        let mut rest = bytes.len() - 15;
        while rest >= 255 {
            block.push(255);
            rest -= 255;
        }
        block.push(rest as u8);
        block.extend(bytes);
        let mut frame = LZ4_LEGACY.to_vec();
        frame.extend((block.len() as u32).to_le_bytes());
        frame.extend(block);
        frame
    }

    /// `printf 'the kernel, compressed\n' | xz --check=crc32 --x86 --lzma2=preset=1`, as kernel builds do.
    pub(in crate::kernel) const XZ_TEXT: &[u8] = b"the kernel, compressed\n";
    pub(in crate::kernel) const XZ_BYTES: &[u8] = include_bytes!("testdata/text.xz");
    pub(in crate::kernel) const LZMA_BYTES: &[u8] = include_bytes!("testdata/text.lzma");

    #[test]
    fn every_format_is_recognised_and_the_appended_size_ignored() {
        let text = b"a kernel is a large program ".repeat(100);
        for compressed in [gzip(&text), zstd(&text), lz4(&text)] {
            for tail in [&b""[..], &(text.len() as u32).to_le_bytes()] {
                let stream = [&compressed, tail].concat();
                assert_eq!(decompress("test", &stream, 1 << 20).unwrap(), text);
            }
        }
        for compressed in [XZ_BYTES, LZMA_BYTES] {
            let stream = [compressed, &[23, 0, 0, 0]].concat();
            assert_eq!(decompress("test", &stream, 1 << 20).unwrap(), XZ_TEXT);
        }
    }

    #[test]
    fn a_bomb_ends_at_the_limit() {
        let text = vec![0; 1 << 20];
        for compressed in [gzip(&text), zstd(&text), lz4(&text)] {
            let result = decompress("test", &compressed, (1 << 20) - 1);
            assert!(matches!(result, Err(KernelError::TooLarge { .. })), "{result:?}");
        }
    }

    #[test]
    fn cut_and_unknown_streams_are_errors() {
        let text = b"a kernel is a large program ".repeat(100);
        for compressed in [gzip(&text), zstd(&text), lz4(&text), XZ_BYTES.to_vec()] {
            let cut = &compressed[..compressed.len() / 2];
            assert!(matches!(decompress("test", cut, 1 << 20), Err(KernelError::Decompress { .. })));
        }
        assert!(matches!(decompress("test", b"MZ", 9), Err(KernelError::UnknownCompression { .. })));
    }
}

//! Header blocks: name and value pairs, compressed in one zlib stream for each direction of a connection (draft
//! §2.6.10).

use super::dictionary::dictionary;
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

/// A decompressed block over this is refused.
const MAX_BLOCK: usize = 64 * 1024;

/// Names and values, names in the order and case in which they came.
pub(in crate::streaming) type Headers = Vec<(String, String)>;

/// The block is no block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed header block")]
pub(super) struct Malformed;

/// The client's direction.
#[derive(Debug)]
pub(super) struct Decoder(Decompress);

impl Decoder {
    pub(super) fn new() -> Self {
        Decoder(Decompress::new(true))
    }

    /// Must see every block of the connection, in order.
    pub(super) fn decode(&mut self, mut block: &[u8]) -> Result<Headers, Malformed> {
        let mut plain = Vec::with_capacity(1024);
        loop {
            if plain.len() == plain.capacity() {
                plain.reserve(plain.len());
            }
            let (taken, made) = (self.0.total_in(), plain.len());
            let result = self
                .0
                .decompress_vec(block, &mut plain, FlushDecompress::Sync);
            block = &block[usize::try_from(self.0.total_in() - taken).unwrap_or(0)..];
            match result {
                Err(error) if error.needs_dictionary().is_some() => {
                    self.0
                        .set_dictionary(&dictionary())
                        .map_err(|_| Malformed)?;
                }
                Err(_) | Ok(Status::StreamEnd) => return Err(Malformed),
                Ok(_) if plain.len() > MAX_BLOCK => return Err(Malformed),
                Ok(_)
                    if plain.len() == made
                        || (block.is_empty() && plain.len() < plain.capacity()) =>
                {
                    break;
                }
                Ok(_) => {}
            }
        }
        parse(&plain).ok_or(Malformed)
    }
}

fn parse(mut plain: &[u8]) -> Option<Headers> {
    let mut headers = Headers::new();
    for _ in 0..take_u32(&mut plain)? {
        headers.push((take_text(&mut plain)?, take_text(&mut plain)?));
    }
    Some(headers)
}

fn take_u32(plain: &mut &[u8]) -> Option<u32> {
    let (head, rest) = plain.split_first_chunk::<4>()?;
    *plain = rest;
    Some(u32::from_be_bytes(*head))
}

fn take_text(plain: &mut &[u8]) -> Option<String> {
    let length = take_u32(plain)? as usize;
    let (text, rest) = plain.split_at_checked(length)?;
    *plain = rest;
    Some(String::from_utf8_lossy(text).into_owned())
}

/// Our direction.
#[derive(Debug)]
pub(super) struct Encoder(Compress);

impl Encoder {
    pub(super) fn new() -> Self {
        let mut compress = Compress::new(Compression::fast(), true);
        // A fresh compressor takes any dictionary.
        let _ = compress.set_dictionary(&dictionary());
        Encoder(compress)
    }

    /// Each block must be sent, in order.
    pub(super) fn encode(&mut self, headers: &Headers) -> Vec<u8> {
        let mut plain = (headers.len() as u32).to_be_bytes().to_vec();
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            plain.extend_from_slice(&(text.len() as u32).to_be_bytes());
            plain.extend_from_slice(text.as_bytes());
        }
        let mut block = Vec::with_capacity(plain.len() + 64);
        let mut rest = plain.as_slice();
        loop {
            let taken = self.0.total_in();
            // It fails only after its end, which never comes.
            let _ = self.0.compress_vec(rest, &mut block, FlushCompress::Sync);
            rest = &rest[usize::try_from(self.0.total_in() - taken).unwrap_or(0)..];
            if rest.is_empty() && block.len() < block.capacity() {
                return block;
            }
            block.reserve(256);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn blocks_of_one_connection_are_read_in_order() {
        let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new());
        for kind in ["error", "stdin", "stdout"] {
            let headers = vec![
                ("streamtype".to_owned(), kind.to_owned()),
                ("host".to_owned(), String::new()),
            ];
            assert_eq!(decoder.decode(&encoder.encode(&headers)), Ok(headers));
        }
        assert_eq!(
            decoder.decode(&encoder.encode(&Headers::new())),
            Ok(Headers::new())
        );
    }

    #[test]
    fn a_large_block_is_read_and_a_bomb_is_refused() {
        let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new());
        let large = vec![("name".to_owned(), "value".repeat(8000))];
        assert_eq!(decoder.decode(&encoder.encode(&large)), Ok(large));
        let bomb = vec![("name".to_owned(), "0".repeat(10_000_000))];
        assert_eq!(decoder.decode(&encoder.encode(&bomb)), Err(Malformed));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Decoder::new().decode(&bytes);
            let _ = parse(&bytes);
        }
    }
}

//! Sparse files of pax archives (GNU tar manual, "Storing Sparse Files", formats 0.0, 0.1 and 1.0): a map tells
//! where in the file the stored bytes go. The `tar` crate knows the older format of its own.

use std::io::{self, Read};

/// More pieces than that are there to fill the memory.
const PIECES: usize = 1 << 20;

/// What the extended headers say.
#[derive(Debug, Default)]
pub struct Headers {
    /// Of the formats that have a version (1.0).
    version: Option<(Vec<u8>, Vec<u8>)>,
    /// The file's name, where the entry's own is made up.
    pub name: Option<Vec<u8>>,
    size: Option<u64>,
    numbers: Vec<u64>,
    pieces: Option<u64>,
}

/// Where the stored bytes go in the file.
#[derive(Debug, PartialEq, Eq)]
pub struct Map {
    /// The file's size.
    pub size: u64,
    /// Offset and length, in their order.
    pieces: Vec<(u64, u64)>,
}

const MALFORMED: &str = "its map of a sparse file is malformed";

impl Headers {
    /// Reads one extended header; false if it isn't about sparse files.
    pub fn read(&mut self, key: &[u8], value: &[u8]) -> Result<bool, &'static str> {
        let Some(key) = key.strip_prefix(b"GNU.sparse.") else {
            return Ok(false);
        };
        match key {
            b"major" => self.version.get_or_insert_default().0 = value.to_vec(),
            b"minor" => self.version.get_or_insert_default().1 = value.to_vec(),
            b"name" => self.name = Some(value.to_vec()),
            b"size" | b"realsize" => self.size = Some(number(value)?),
            b"numblocks" => self.pieces = Some(number(value)?),
            b"offset" | b"numbytes" => self.push(number(value)?)?,
            b"map" => {
                for part in value.split(|&byte| byte == b',') {
                    self.push(number(part)?)?;
                }
            }
            _ => return Err("it is a sparse file of an unknown kind"),
        }
        Ok(true)
    }

    fn push(&mut self, number: u64) -> Result<(), &'static str> {
        if self.numbers.len() >= 2 * PIECES {
            return Err(MALFORMED);
        }
        self.numbers.push(number);
        Ok(())
    }

    /// The map of a file of which `stored` bytes are in the archive, of which format 1.0 keeps it in the first;
    /// `None` for a file that isn't sparse.
    pub fn map(
        mut self,
        content: &mut impl Read,
        stored: u64,
    ) -> Result<Option<Map>, &'static str> {
        let Some(size) = self.size else {
            return match self.version.is_none() && self.pieces.is_none() && self.numbers.is_empty()
            {
                true => Ok(None),
                false => Err(MALFORMED),
            };
        };
        let mut stored = stored;
        if let Some(version) = &self.version {
            if (version.0.as_slice(), version.1.as_slice()) != (b"1", b"0") {
                return Err("it is a sparse file of an unknown version");
            }
            let (numbers, used) = read_map(content).map_err(|_| MALFORMED)?;
            self.numbers = numbers;
            stored = stored.checked_sub(used).ok_or(MALFORMED)?;
        } else if self
            .pieces
            .is_some_and(|pieces| pieces.checked_mul(2) != Some(self.numbers.len() as u64))
        {
            return Err(MALFORMED);
        }
        let (pairs, rest) = self.numbers.as_chunks::<2>();
        if !rest.is_empty() {
            return Err(MALFORMED);
        }
        let mut end = 0;
        let mut sum = 0_u64;
        for [offset, length] in pairs {
            let next = offset.checked_add(*length).ok_or(MALFORMED)?;
            if *offset < end || next > size {
                return Err(MALFORMED);
            }
            end = next;
            sum += length;
        }
        if sum != stored {
            return Err(MALFORMED);
        }
        let pieces = pairs.iter().map(|[offset, length]| (*offset, *length));
        Ok(Some(Map {
            size,
            pieces: pieces.collect(),
        }))
    }
}

/// Format 1.0: a count and that many pairs, each number on a line, filled up to a block.
fn read_map(content: &mut impl Read) -> io::Result<(Vec<u64>, u64)> {
    let malformed = || io::Error::from(io::ErrorKind::InvalidData);
    let mut numbers = Vec::new();
    let mut wanted = None;
    let mut line = Vec::new();
    let mut used = 0;
    let mut block = [0; 512];
    while wanted != Some(numbers.len()) {
        content.read_exact(&mut block)?;
        used += block.len() as u64;
        for &byte in &block {
            if byte != b'\n' {
                line.push(byte);
                if line.len() > 20 {
                    return Err(malformed());
                }
                continue;
            }
            let value = number(&line).map_err(|_| malformed())?;
            line.clear();
            match wanted {
                None => {
                    let pieces = usize::try_from(value).map_err(|_| malformed())?;
                    if pieces > PIECES {
                        return Err(malformed());
                    }
                    wanted = Some(2 * pieces);
                }
                Some(_) => numbers.push(value),
            }
            if wanted == Some(numbers.len()) {
                break;
            }
        }
    }
    Ok((numbers, used))
}

fn number(text: &[u8]) -> Result<u64, &'static str> {
    std::str::from_utf8(text)
        .ok()
        .filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))
        .and_then(|text| text.parse().ok())
        .ok_or(MALFORMED)
}

/// The file that a map and its stored bytes make: zeros between the pieces.
pub struct Expanded<'a, R> {
    stored: &'a mut R,
    map: &'a Map,
    at: u64,
    piece: usize,
}

impl<'a, R: Read> Expanded<'a, R> {
    pub fn new(stored: &'a mut R, map: &'a Map) -> Self {
        Self {
            stored,
            map,
            at: 0,
            piece: 0,
        }
    }
}

impl<R: Read> Read for Expanded<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let piece = loop {
            match self.map.pieces.get(self.piece) {
                Some((offset, length)) if offset + length <= self.at => self.piece += 1,
                other => break other,
            }
        };
        // Where this stretch of zeros or stored bytes ends.
        let (end, stored) = match piece {
            Some((offset, length)) if *offset <= self.at => (offset + length, true),
            Some((offset, _)) => (*offset, false),
            None => (self.map.size, false),
        };
        let room = usize::try_from(end - self.at).unwrap_or(usize::MAX);
        let length = room.min(buffer.len());
        let Some(buffer) = buffer.get_mut(..length) else {
            return Ok(0);
        };
        let n = if stored {
            self.stored.read(buffer)?
        } else {
            buffer.fill(0);
            length
        };
        if n == 0 && length > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += n as u64;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(all: &[(&str, &str)]) -> Result<Headers, &'static str> {
        let mut headers = Headers::default();
        for (key, value) in all {
            assert!(headers.read(format!("GNU.sparse.{key}").as_bytes(), value.as_bytes())?);
        }
        Ok(headers)
    }

    fn file(headers: Headers, mut stored: &[u8]) -> Result<Vec<u8>, &'static str> {
        let length = stored.len() as u64;
        let map = headers.map(&mut stored, length)?.unwrap();
        let mut file = Vec::new();
        Expanded::new(&mut stored, &map)
            .read_to_end(&mut file)
            .unwrap();
        Ok(file)
    }

    #[test]
    fn each_format_makes_the_same_file() {
        let whole = b"\0\0ab\0\0\0cde\0\0";
        let zero = [
            ("size", "12"),
            ("numblocks", "2"),
            ("offset", "2"),
            ("numbytes", "2"),
            ("offset", "7"),
            ("numbytes", "3"),
        ];
        assert_eq!(file(headers(&zero).unwrap(), b"abcde").unwrap(), whole);
        let one = [
            ("size", "12"),
            ("numblocks", "2"),
            ("map", "2,2,7,3"),
            ("name", "x"),
        ];
        assert_eq!(file(headers(&one).unwrap(), b"abcde").unwrap(), whole);
        let two = [
            ("major", "1"),
            ("minor", "0"),
            ("realsize", "12"),
            ("name", "x"),
        ];
        let mut stored = b"2\n2\n2\n7\n3\n".to_vec();
        stored.resize(512, 0);
        stored.extend(b"abcde");
        assert_eq!(file(headers(&two).unwrap(), &stored).unwrap(), whole);
    }

    #[test]
    fn a_malformed_map_is_refused() {
        for (numbers, stored) in [
            ("2,2,1,1", 3),
            ("0,99", 99),
            ("0,1,2", 1),
            ("0,2", 3),
            ("18446744073709551615,2", 2),
        ] {
            let headers = headers(&[("size", "12"), ("map", numbers)]).unwrap();
            assert!(file(headers, &vec![1; stored]).is_err(), "{numbers}");
        }
        assert!(headers(&[("map", "1,x")]).is_err());
        assert!(headers(&[("what", "1")]).is_err());
        assert!(
            headers(&[("map", "0,1")])
                .unwrap()
                .map(&mut io::empty(), 1)
                .is_err()
        );
        assert_eq!(Headers::default().map(&mut io::empty(), 5), Ok(None));
        let huge = headers(&[("major", "1"), ("minor", "0"), ("realsize", "12")]).unwrap();
        let mut text = b"99999999999\n".to_vec();
        text.resize(512, 0);
        assert!(huge.map(&mut text.as_slice(), 512).is_err());
    }
}

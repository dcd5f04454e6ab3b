//! How to write a layer's archive again, byte for byte, from its unpacked files: all of the archive but the
//! files' contents, which stand in the layer's folder already. Of a gigabyte it is some hundred kilobytes.
//!
//! A recipe is a zstd stream of steps: `R`, a length (u32, little-endian) and that many bytes of the archive; or
//! `F`, a size (u64), a length (u32) and the path of a file in the layer's folder whose content comes next.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use sha2::{Digest as _, Sha256};

use super::digest::Digest;

/// What may stand between two files' contents: headers, names, attributes, padding. A header that claims more is
/// there to fill the memory.
const HEADERS_LIMIT_BYTES: usize = 8 << 20;
/// The longest path that is read back.
const PATH_LIMIT_BYTES: u32 = 64 << 10;
const PIECE_BYTES: usize = 64 << 10;

/// What is being read of an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Headers,
    /// A file's content: only counted.
    Content(u64),
    /// A sparse file's content: the archive has another form of it than the folder.
    Sparse,
}

/// A recipe that is being written while its archive is read.
pub struct Recipe {
    out: zstd::Encoder<'static, File>,
    bytes: Vec<u8>,
    part: Part,
    /// What came since the last file's content.
    headers: usize,
}

impl Recipe {
    pub fn create(path: &Path) -> io::Result<Self> {
        Ok(Self {
            out: zstd::Encoder::new(File::create_new(path)?, 1)?,
            bytes: Vec::new(),
            part: Part::Headers,
            headers: 0,
        })
    }

    /// A file's content is what is read next.
    pub fn begin_content(&mut self, sparse: bool) {
        self.part = if sparse {
            Part::Sparse
        } else {
            Part::Content(0)
        };
    }

    /// The content has been read, and is in the layer's folder at that path.
    pub fn end_content(&mut self, path: &[u8]) -> io::Result<()> {
        self.headers = 0;
        if let Part::Content(size) = std::mem::replace(&mut self.part, Part::Headers)
            && size > 0
        {
            self.flush()?;
            self.out.write_all(b"F")?;
            self.out.write_all(&size.to_le_bytes())?;
            self.out.write_all(&length(path)?.to_le_bytes())?;
            self.out.write_all(path)?;
        }
        Ok(())
    }

    fn read(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.part {
            Part::Content(size) => {
                *size += bytes.len() as u64;
                return Ok(());
            }
            Part::Headers => {
                self.headers += bytes.len();
                if self.headers > HEADERS_LIMIT_BYTES {
                    return Err(io::Error::other(format!(
                        "more than {HEADERS_LIMIT_BYTES} bytes of it are no file's content"
                    )));
                }
            }
            Part::Sparse => {}
        }
        self.bytes.extend_from_slice(bytes);
        if self.bytes.len() >= PIECE_BYTES {
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        if !self.bytes.is_empty() {
            self.out.write_all(b"R")?;
            self.out.write_all(&length(&self.bytes)?.to_le_bytes())?;
            self.out.write_all(&self.bytes)?;
            self.bytes.clear();
        }
        Ok(())
    }

    pub fn finish(mut self) -> io::Result<()> {
        self.flush()?;
        self.out.finish().map(drop)
    }
}

fn length(bytes: &[u8]) -> io::Result<u32> {
    u32::try_from(bytes.len()).map_err(io::Error::other)
}

/// A reader whose bytes go into a recipe.
pub struct Recording<'a, R> {
    pub inner: R,
    pub recipe: &'a RefCell<Recipe>,
}

impl<R: Read> Read for Recording<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.recipe
            .borrow_mut()
            .read(buffer.get(..n).unwrap_or_default())?;
        Ok(n)
    }
}

/// One step of a recipe.
enum Step {
    Bytes(Vec<u8>),
    File { path: Vec<u8>, size: u64 },
}

struct Steps(BufReader<zstd::Decoder<'static, BufReader<File>>>);

impl Steps {
    fn open(recipe: &Path) -> io::Result<Self> {
        let decoder = zstd::Decoder::new(File::open(recipe)?)?;
        Ok(Self(BufReader::new(decoder)))
    }

    fn number<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.0.read_exact(&mut bytes).map(|()| bytes)
    }

    fn bytes(&mut self, length: u32) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let n = (&mut self.0).take(length.into()).read_to_end(&mut bytes)?;
        if n as u64 == u64::from(length) {
            Ok(bytes)
        } else {
            Err(io::ErrorKind::UnexpectedEof.into())
        }
    }

    fn next(&mut self) -> io::Result<Option<Step>> {
        let mut kind = [0];
        if self.0.read(&mut kind)? == 0 {
            return Ok(None);
        }
        let malformed = || io::Error::new(io::ErrorKind::InvalidData, "malformed recipe");
        Ok(Some(match kind {
            [b'R'] => {
                let length = u32::from_le_bytes(self.number()?);
                Step::Bytes(self.bytes(length)?)
            }
            [b'F'] => {
                let size = u64::from_le_bytes(self.number()?);
                let length = u32::from_le_bytes(self.number()?);
                if length > PATH_LIMIT_BYTES {
                    return Err(malformed());
                }
                let path = self.bytes(length)?;
                Step::File { path, size }
            }
            _ => return Err(malformed()),
        }))
    }
}

/// The size of the archive that a recipe makes.
pub fn size(recipe: &Path) -> io::Result<u64> {
    let (mut steps, mut sum) = (Steps::open(recipe)?, 0_u64);
    while let Some(step) = steps.next()? {
        sum = sum.saturating_add(match step {
            Step::Bytes(bytes) => bytes.len() as u64,
            Step::File { size, .. } => size,
        });
    }
    Ok(sum)
}

/// Writes the archive that a recipe makes of the files below `layer`.
pub fn follow(recipe: &Path, layer: &Path, out: &mut impl Write) -> io::Result<()> {
    let folder = rustix::fs::open(
        layer,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let mut steps = Steps::open(recipe)?;
    while let Some(step) = steps.next()? {
        match step {
            Step::Bytes(bytes) => out.write_all(&bytes)?,
            Step::File { path, size } => {
                // It may hold other bytes than it did, even fewer: the digest tells.
                let copied = io::copy(&mut open(&folder, &path)?.take(size), out)?;
                if copied < size {
                    let path = String::from_utf8_lossy(&path);
                    return Err(io::Error::other(format!("{path} is shorter than it was")));
                }
            }
        }
    }
    Ok(())
}

/// The digest of the archive that a recipe makes.
pub fn digest(recipe: &Path, layer: &Path) -> io::Result<Digest> {
    let mut out = Hashed::new(io::sink());
    follow(recipe, layer, &mut out)?;
    Ok(out.digest())
}

/// A writer that hashes what passes.
pub struct Hashed<W> {
    out: W,
    hasher: Sha256,
}

impl<W: Write> Hashed<W> {
    pub fn new(out: W) -> Self {
        Self {
            out,
            hasher: Sha256::new(),
        }
    }

    pub fn digest(self) -> Digest {
        Digest::from_hasher(self.hasher)
    }
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.out.write(bytes)?;
        self.hasher.update(bytes.get(..n).unwrap_or_default());
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn open(folder: &OwnedFd, path: &[u8]) -> io::Result<File> {
    let inside = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(rustix::fs::openat2(folder, path, flags, Mode::empty(), inside)?.into())
}

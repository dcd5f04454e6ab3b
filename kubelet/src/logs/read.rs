//! Reading a log file from a place on, with the options of `kubectl logs`.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use k8s_openapi::jiff::Timestamp;

use super::entry::{self, Stream};

/// What of a log is wanted (PodLogOptions).
#[derive(Clone, Debug, Default)]
pub struct LogOptions {
    /// Stay for what comes.
    pub follow: bool,
    /// The instance before the present one.
    pub previous: bool,
    /// Each line with its time.
    pub timestamps: bool,
    /// Nothing older.
    pub since: Option<Timestamp>,
    /// The last lines only.
    pub tail_lines: Option<u64>,
    /// No more bytes.
    pub limit_bytes: Option<u64>,
    /// One stream only.
    pub stream: Option<Stream>,
}

/// A log that can't be read.
#[derive(Debug, thiserror::Error)]
#[error("read log {}: {source}", path.display())]
pub struct ReadError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// Where reading stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Position {
    /// All that there is has been read.
    End,
    /// There may be more.
    More,
    /// As much as was wanted has been read.
    Limit,
}

/// Reads one log, over its rotations.
pub struct Reader {
    path: PathBuf,
    file: BufReader<File>,
    options: LogOptions,
    /// A line whose end hasn't been written yet.
    unfinished: Vec<u8>,
    /// Whether the next entry continues a line.
    continues: bool,
    left: Option<u64>,
}

/// As much as is read before it is handed on.
const CHUNK: usize = 64 * 1024;

impl Reader {
    /// Opens a log at the place from which `options` want it.
    pub fn open(path: &Path, options: &LogOptions) -> Result<Self, ReadError> {
        let failed = |source| ReadError {
            path: path.to_owned(),
            source,
        };
        let mut file = File::open(path).map_err(failed)?;
        if let Some(lines) = options.tail_lines {
            let start = start_of_tail(&mut file, lines).map_err(failed)?;
            file.seek(SeekFrom::Start(start)).map_err(failed)?;
        }
        Ok(Self {
            path: path.to_owned(),
            file: BufReader::new(file),
            options: options.clone(),
            unfinished: Vec::new(),
            continues: false,
            left: options.limit_bytes,
        })
    }

    /// Appends what comes next to `out`, as the client sees it.
    pub fn read(&mut self, out: &mut Vec<u8>) -> Result<Position, ReadError> {
        while out.len() < CHUNK {
            if self.left == Some(0) {
                return Ok(Position::Limit);
            }
            let failed = |source| ReadError {
                path: self.path.clone(),
                source,
            };
            let read = self
                .file
                .read_until(b'\n', &mut self.unfinished)
                .map_err(failed)?;
            if read == 0 || !self.unfinished.ends_with(b"\n") {
                return Ok(Position::End);
            }
            let line = std::mem::take(&mut self.unfinished);
            self.append(&line, out);
        }
        Ok(Position::More)
    }

    /// Whether the path now names another file: the log was rotated, and this one is complete.
    pub fn rotated(&self) -> bool {
        use std::os::unix::fs::MetadataExt;
        let id = |meta: std::fs::Metadata| (meta.dev(), meta.ino());
        match (
            self.file.get_ref().metadata(),
            std::fs::metadata(&self.path),
        ) {
            (Ok(open), Ok(named)) => id(open) != id(named),
            _ => false,
        }
    }

    /// Goes on with the file that the path names now.
    pub fn reopen(&mut self) -> Result<(), ReadError> {
        let file = File::open(&self.path).map_err(|source| ReadError {
            path: self.path.clone(),
            source,
        })?;
        self.file = BufReader::new(file);
        self.unfinished.clear();
        Ok(())
    }

    fn append(&mut self, line: &[u8], out: &mut Vec<u8>) {
        let Some(entry) = entry::parse(line) else {
            return;
        };
        let too_old = self.options.since.is_some_and(|since| {
            entry
                .time
                .parse::<Timestamp>()
                .is_ok_and(|time| time < since)
        });
        if too_old
            || self
                .options
                .stream
                .is_some_and(|stream| stream != entry.stream)
        {
            return;
        }
        let start = out.len();
        if self.options.timestamps && !self.continues {
            out.extend_from_slice(entry.time.as_bytes());
            out.push(b' ');
        }
        out.extend_from_slice(entry.content);
        if !entry.partial {
            out.push(b'\n');
        }
        self.continues = entry.partial;
        if let Some(left) = &mut self.left {
            let added = (out.len() - start) as u64;
            let taken = added.min(*left);
            out.truncate(start + taken as usize);
            *left -= taken;
        }
    }
}

/// Where the last `lines` full lines begin, read from the end. A line in parts counts once.
fn start_of_tail(file: &mut File, lines: u64) -> io::Result<u64> {
    const BLOCK: u64 = 16 * 1024;
    let length = file.seek(SeekFrom::End(0))?;
    if lines == 0 {
        return Ok(length);
    }
    let mut position = length;
    let mut tail: Vec<u8> = Vec::new();
    loop {
        let take = BLOCK.min(position);
        position -= take;
        file.seek(SeekFrom::Start(position))?;
        let mut block = vec![0; take as usize];
        file.read_exact(&mut block)?;
        block.append(&mut tail);
        tail = block;
        if let Some(start) = tail_in(&tail, lines, position == 0) {
            return Ok(position + start as u64);
        }
        if position == 0 {
            return Ok(0);
        }
    }
}

/// Where the last `lines` lines begin in `bytes`; none if that isn't certain yet.
fn tail_in(bytes: &[u8], lines: u64, from_start: bool) -> Option<usize> {
    let mut starts: Vec<usize> = bytes
        .iter()
        .enumerate()
        .filter(|(_, b)| **b == b'\n')
        .map(|(at, _)| at + 1)
        .collect();
    starts.retain(|at| *at < bytes.len());
    if from_start {
        starts.insert(0, 0);
    }
    let partial = |at: usize| {
        let end = bytes[at..]
            .iter()
            .position(|b| *b == b'\n')
            .map_or(bytes.len(), |n| at + n);
        entry::parse(&bytes[at..end]).is_some_and(|e| e.partial)
    };
    let mut count = 0;
    for index in (0..starts.len()).rev() {
        // A line begins where the entry before it is a full one.
        let begins = match index.checked_sub(1) {
            Some(before) => !partial(*starts.get(before)?),
            None => from_start,
        };
        count += u64::from(begins);
        if count == lines {
            return starts.get(index).copied();
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(lines: &[&str]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        std::fs::write(file.path(), text).expect("written");
        file
    }

    fn all(file: &tempfile::NamedTempFile, options: &LogOptions) -> String {
        let mut out = Vec::new();
        let mut reader = Reader::open(file.path(), options).expect("opened");
        while reader.read(&mut out).expect("read") == Position::More {}
        String::from_utf8(out).expect("text")
    }

    const LINES: [&str; 5] = [
        "2026-01-01T00:00:01Z stdout F one",
        "2026-01-01T00:00:02Z stderr F two",
        "2026-01-01T00:00:03Z stdout P thr",
        "2026-01-01T00:00:03Z stdout F ee",
        "2026-01-01T00:00:04Z stdout F four",
    ];

    #[test]
    fn parts_are_joined_and_options_heeded() {
        let file = log(&LINES);
        assert_eq!(
            all(&file, &LogOptions::default()),
            "one\ntwo\nthree\nfour\n"
        );
        assert_eq!(
            all(
                &file,
                &LogOptions {
                    tail_lines: Some(2),
                    ..Default::default()
                }
            ),
            "three\nfour\n"
        );
        assert_eq!(
            all(
                &file,
                &LogOptions {
                    tail_lines: Some(0),
                    ..Default::default()
                }
            ),
            ""
        );
        assert_eq!(
            all(
                &file,
                &LogOptions {
                    tail_lines: Some(9),
                    ..Default::default()
                }
            ),
            "one\ntwo\nthree\nfour\n"
        );
        assert_eq!(
            all(
                &file,
                &LogOptions {
                    limit_bytes: Some(6),
                    ..Default::default()
                }
            ),
            "one\ntw"
        );
        let since = "2026-01-01T00:00:03Z".parse().ok();
        assert_eq!(
            all(
                &file,
                &LogOptions {
                    since,
                    timestamps: true,
                    ..Default::default()
                }
            ),
            "2026-01-01T00:00:03Z three\n2026-01-01T00:00:04Z four\n"
        );
        assert_eq!(
            all(
                &file,
                &LogOptions {
                    stream: Some(Stream::Stderr),
                    ..Default::default()
                }
            ),
            "two\n"
        );
    }

    #[test]
    fn the_tail_of_a_long_log_is_found_from_its_end() {
        let lines: Vec<String> = (0..5000)
            .map(|n| format!("2026-01-01T00:00:01Z stdout F line {n}"))
            .collect();
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        let text = all(
            &log(&lines),
            &LogOptions {
                tail_lines: Some(700),
                ..Default::default()
            },
        );
        assert_eq!(text.lines().count(), 700);
        assert!(text.starts_with("line 4300\n"));
    }

    #[test]
    fn a_rotated_log_goes_on_in_the_new_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("0.log");
        std::fs::write(&path, "t stdout F a\n").expect("written");
        let mut reader = Reader::open(&path, &LogOptions::default()).expect("opened");
        let mut out = Vec::new();
        reader.read(&mut out).expect("read");
        assert!(!reader.rotated());
        std::fs::rename(&path, folder.path().join("0.log.1")).expect("renamed");
        std::fs::write(&path, "t stdout F b\n").expect("written");
        assert!(reader.rotated());
        reader.reopen().expect("opened");
        reader.read(&mut out).expect("read");
        assert_eq!(out, b"a\nb\n");
    }
}

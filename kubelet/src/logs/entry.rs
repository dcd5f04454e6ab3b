//! One line of a log: `2026-01-02T03:04:05.678901234Z stdout F text` (CRI logging format). Tag P: the line goes on.

/// Which stream a container wrote to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// One line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// RFC 3339 with nanoseconds.
    pub time: &'a str,
    /// Where it was written.
    pub stream: Stream,
    /// Whether the container's line goes on in the next entry.
    pub partial: bool,
    /// What was written, without the end of the line.
    pub content: &'a [u8],
}

/// Reads a line, with or without its end; none if it isn't one.
pub fn parse(line: &[u8]) -> Option<Entry<'_>> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let mut parts = line.splitn(4, |b| *b == b' ');
    let time = std::str::from_utf8(parts.next()?).ok()?;
    let stream = match parts.next()? {
        b"stdout" => Stream::Stdout,
        b"stderr" => Stream::Stderr,
        _ => return None,
    };
    let tags = parts.next()?;
    let partial = tags.split(|b| *b == b':').next() == Some(b"P");
    Some(Entry {
        time,
        stream,
        partial,
        content: parts.next().unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_four_parts() {
        let entry = parse(b"2026-01-02T03:04:05.6Z stderr P a b \n").expect("a line");
        assert_eq!(
            (entry.stream, entry.partial, entry.content),
            (Stream::Stderr, true, b"a b ".as_slice())
        );
        assert_eq!(
            parse(b"t stdout F\n").map(|e| e.content),
            Some(b"".as_slice())
        );
        assert_eq!(parse(b"nonsense\n"), None);
    }
}

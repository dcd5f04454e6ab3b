//! The CRI log format: `TIMESTAMP STREAM TAG CONTENT\n`, where the tag is `F` for a whole line (or its last part) and
//! `P` for a part of a line that is longer than an entry.
//!
//! Pure. Where entries begin and end depends on the bytes alone, not on the chunks in which they were printed.

use std::io::Write;

/// The longest content of an entry, in bytes.
pub(crate) const MAX_CONTENT: usize = 16 * 1024;

/// The formatted bytes of one call stay near this, whatever is in it.
const MAX_OUTPUT: usize = 256 * 1024;

/// `2026-11-22T00:56:46.123456789Z`: always 30 bytes, so that a batch's length doesn't depend on its moment.
pub(crate) fn timestamp(unix_ns: i64) -> String {
    let seconds = unix_ns.div_euclid(1_000_000_000);
    let nanos = i32::try_from(unix_ns.rem_euclid(1_000_000_000)).unwrap_or(0);
    let stamp = jiff::Timestamp::new(seconds, nanos).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    stamp.strftime("%Y-%m-%dT%H:%M:%S%.9fZ").to_string()
}

/// Appends the entries at the beginning of `raw` to `out`, and returns how many bytes of `raw` they took. What may go on
/// stays: a line without its end, unless `ended` says that none will come, and then it is a part.
pub(crate) fn format(
    raw: &[u8],
    stream: &str,
    timestamp: &str,
    ended: bool,
    out: &mut Vec<u8>,
) -> usize {
    let mut taken = 0;
    while taken < raw.len() && out.len() < MAX_OUTPUT {
        let rest = &raw[taken..];
        let window = &rest[..rest.len().min(MAX_CONTENT + 1)];
        let (tag, content, length) = match window.iter().position(|byte| *byte == b'\n') {
            Some(end) => ("F", &rest[..end], end + 1),
            None if rest.len() > MAX_CONTENT => ("P", &rest[..MAX_CONTENT], MAX_CONTENT),
            None if ended => ("P", rest, rest.len()),
            None => break,
        };
        // Writing to a vector can't fail.
        let _ = write!(out, "{timestamp} {stream} {tag} ");
        out.extend_from_slice(content);
        out.push(b'\n');
        taken += length;
    }
    taken
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: &str = "2026-11-22T00:56:46.123456789Z";

    /// As the scribe does: what isn't taken stays in front of what comes next.
    fn log(chunks: &[&[u8]]) -> Vec<u8> {
        let (mut pipe, mut out) = (Vec::new(), Vec::new());
        for chunk in chunks {
            pipe.extend_from_slice(chunk);
            settle(&mut pipe, false, &mut out);
        }
        settle(&mut pipe, true, &mut out);
        out
    }

    fn settle(pipe: &mut Vec<u8>, ended: bool, out: &mut Vec<u8>) {
        loop {
            let mut batch = Vec::new();
            let taken = format(pipe, "stdout", NOW, ended, &mut batch);
            out.extend(batch);
            pipe.drain(..taken);
            if taken == 0 {
                return;
            }
        }
    }

    fn contents(log: &[u8]) -> Vec<u8> {
        let mut text = Vec::new();
        for line in log.split_inclusive(|byte| *byte == b'\n') {
            let head = format!("{NOW} stdout ");
            let line = line.strip_prefix(head.as_bytes()).unwrap();
            let end = if line[0] == b'F' {
                line.len()
            } else {
                line.len() - 1
            };
            text.extend_from_slice(&line[2..end]);
        }
        text
    }

    #[test]
    fn entries_are_as_the_cri_says() {
        let log = log(&[b"one\n\ntwo"]);
        let text = format!("{NOW} stdout F one\n{NOW} stdout F \n{NOW} stdout P two\n");
        assert_eq!(String::from_utf8(log).unwrap(), text);
    }

    #[test]
    fn a_long_line_is_cut_into_parts_that_end_with_a_whole_one() {
        let line = [vec![b'x'; MAX_CONTENT * 2 + 10], b"\n".to_vec()].concat();
        let tags: Vec<u8> = log(&[&line])
            .split(|byte| *byte == b'\n')
            .filter_map(|line| line.get(38).copied())
            .collect();
        assert_eq!(tags, b"PPF");
    }

    #[test]
    fn a_line_of_exactly_the_longest_content_is_whole() {
        let line = [vec![b'x'; MAX_CONTENT], b"\n".to_vec()].concat();
        assert_eq!(log(&[&line[..MAX_CONTENT], b"\n"])[38], b'F');
    }

    #[test]
    fn timestamps_have_one_length_and_are_utc() {
        assert_eq!(timestamp(0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(
            timestamp(1_795_308_606_123_456_789),
            "2026-11-22T00:50:06.123456789Z"
        );
        assert_eq!(timestamp(i64::MAX).len(), 30);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn any_chunking_gives_the_same_log_and_no_byte_is_lost(
            text in proptest::collection::vec(prop_oneof![9 => Just(b'a'), 1 => Just(b'\n')], 0..40_000),
            long in proptest::collection::vec(Just(b'b'), 0..40_000),
            cuts in proptest::collection::vec(0usize..80_000, 0..20),
        ) {
            let all = [text, long].concat();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(all.len())).collect();
            cuts.extend([0, all.len()]);
            cuts.sort_unstable();
            let chunks: Vec<&[u8]> = cuts.windows(2).map(|pair| &all[pair[0]..pair[1]]).collect();
            let whole = log(&[&all]);
            prop_assert_eq!(&log(&chunks), &whole);
            prop_assert_eq!(contents(&whole), all);
        }
    }
}

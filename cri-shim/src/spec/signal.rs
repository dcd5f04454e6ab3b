//! Stop signals, as images write them (`SIGTERM`, `TERM`, `15`, `SIGRTMIN+3`) and as CRI numbers them.

use cri_api::v1::Signal;

/// Names and numbers on Linux; the numbers are the same on every architecture that we build for.
const NAMES: [(&str, i32); 36] = [
    ("ABRT", 6),
    ("ALRM", 14),
    ("BUS", 7),
    ("CHLD", 17),
    ("CLD", 17),
    ("CONT", 18),
    ("FPE", 8),
    ("HUP", 1),
    ("ILL", 4),
    ("INT", 2),
    ("IO", 29),
    ("IOT", 6),
    ("KILL", 9),
    ("PIPE", 13),
    ("POLL", 29),
    ("PROF", 27),
    ("PWR", 30),
    ("QUIT", 3),
    ("SEGV", 11),
    ("STKFLT", 16),
    ("STOP", 19),
    ("SYS", 31),
    ("TERM", 15),
    ("TRAP", 5),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("USR1", 10),
    ("USR2", 12),
    ("VTALRM", 26),
    ("WINCH", 28),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("RTMIN", 34),
    ("RTMAX", 64),
];

/// The number of a signal by name, with or without `SIG`, in either case, or by number.
pub fn parse(text: &str) -> Option<i32> {
    let upper = text.trim().to_ascii_uppercase();
    if let Ok(number) = upper.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let number = |name: &str| {
        NAMES
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, number)| *number)
    };
    if let Some(number) = number(name) {
        return Some(number);
    }
    let from_min = name
        .strip_prefix("RTMIN+")
        .and_then(|n| n.parse::<i32>().ok())
        .map(|n| 34 + n);
    let from_max = name
        .strip_prefix("RTMAX-")
        .and_then(|n| n.parse::<i32>().ok())
        .map(|n| 64 - n);
    from_min
        .or(from_max)
        .filter(|number| (34..=64).contains(number))
}

/// CRI's word for a signal as text that [`parse`] reads; `None` for "whatever the image says".
pub fn name(signal: Signal) -> Option<String> {
    if signal == Signal::RuntimeDefault {
        return None;
    }
    let name = signal.as_str_name().trim_start_matches("SIGNAL_");
    Some(
        name.replace("RTMINPLUS", "RTMIN+")
            .replace("RTMAXMINUS", "RTMAX-"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_read_as_images_write_them() {
        for (text, number) in [
            ("SIGTERM", 15),
            ("term", 15),
            ("9", 9),
            ("SIGRTMIN+3", 37),
            ("RTMAX-1", 63),
            (" SIGUSR1 ", 10),
        ] {
            assert_eq!(parse(text), Some(number), "{text}");
        }
        for text in ["", "SIGNOPE", "0", "65", "SIGRTMIN+99", "-1"] {
            assert_eq!(parse(text), None, "{text}");
        }
        assert_eq!(name(Signal::RuntimeDefault), None);
        assert_eq!(
            name(Signal::Sigusr1).and_then(|text| parse(&text)),
            Some(10)
        );
        assert_eq!(
            name(Signal::Sigrtmaxminus14).and_then(|text| parse(&text)),
            Some(50)
        );
    }
}

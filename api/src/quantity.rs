//! Quantities: `250m`, `1.5Gi`, `2e3`: exact fixed-point numbers with nine decimal places
//! (`k8s.io/apimachinery/pkg/api/resource`).

use std::cmp::Ordering;
use std::fmt;
use std::ops::{Add, Sub};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

const NANOS: i128 = 1_000_000_000;
/// Suffixes of thousands, from 10⁻⁹ up.
const DECIMAL: [&str; 10] = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"];
/// Suffixes of 1024, from 1 up.
const BINARY: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];

/// Which suffixes a quantity is written with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// `m`, `k`, `M`
    #[default]
    DecimalSi,
    /// `Ki`, `Mi`
    BinarySi,
    /// `e3`
    DecimalExponent,
}

/// An exact amount. Two are equal if their amounts are; the way that they are written doesn't count.
/// Arithmetic saturates at ±1.7e29.
#[derive(Clone, Copy, Debug, Default)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

/// Not a quantity. The texts are upstream's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    #[error(
        "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
    )]
    Format,
    #[error("unable to parse quantity's suffix")]
    Suffix,
    #[error("unable to parse numeric part of quantity")]
    Numeric,
}

impl Quantity {
    pub const ZERO: Self = Self {
        nanos: 0,
        format: Format::DecimalSi,
    };

    /// A whole number, written with the given suffixes.
    pub fn from_int(value: i64, format: Format) -> Self {
        Self {
            nanos: i128::from(value) * NANOS,
            format,
        }
    }

    /// A number of thousandths: CPU time in millicores.
    pub fn from_milli(value: i64) -> Self {
        Self {
            nanos: i128::from(value) * (NANOS / 1000),
            format: Format::DecimalSi,
        }
    }

    /// The amount, rounded away from zero to a whole number; saturates.
    pub fn value(self) -> i64 {
        saturate(round_up(self.nanos, NANOS))
    }

    /// The amount in thousandths, rounded away from zero; saturates.
    pub fn milli_value(self) -> i64 {
        saturate(round_up(self.nanos, NANOS / 1000))
    }

    pub fn is_zero(self) -> bool {
        self.nanos == 0
    }

    pub fn is_negative(self) -> bool {
        self.nanos < 0
    }

    /// Whether the amount is a whole number.
    pub fn is_integer(self) -> bool {
        self.nanos % NANOS == 0
    }

    /// The amount as a floating-point number, for metrics.
    pub fn as_f64(self) -> f64 {
        self.nanos as f64 / NANOS as f64
    }
}

/// Divides and rounds away from zero: who asks for a little gets a little, not nothing.
fn round_up(value: i128, unit: i128) -> i128 {
    value / unit + if value % unit == 0 { 0 } else { value.signum() }
}

fn saturate(value: i128) -> i64 {
    i64::try_from(value).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX })
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

impl Add for Quantity {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        let format = if self.is_zero() {
            other.format
        } else {
            self.format
        };
        Self {
            nanos: self.nanos.saturating_add(other.nanos),
            format,
        }
    }
}

impl Sub for Quantity {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        let format = if self.is_zero() {
            other.format
        } else {
            self.format
        };
        Self {
            nanos: self.nanos.saturating_sub(other.nanos),
            format,
        }
    }
}

impl std::iter::Sum for Quantity {
    fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
        iter.fold(Self::ZERO, Add::add)
    }
}

impl FromStr for Quantity {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        if text.is_empty() {
            return Err(ParseError::Format);
        }
        let (negative, rest) = match text.as_bytes()[0] {
            b'-' => (true, &text[1..]),
            b'+' => (false, &text[1..]),
            _ => (false, text),
        };
        let digits = |s: &str| s.bytes().take_while(u8::is_ascii_digit).count();
        let (whole, rest) = rest.split_at(digits(rest));
        let (fraction, suffix) = match rest.strip_prefix('.') {
            Some(rest) => rest.split_at(digits(rest)),
            None => ("", rest),
        };
        check_suffix_shape(suffix)?;
        if whole.is_empty() && fraction.is_empty() {
            return Err(if suffix.is_empty() {
                ParseError::Numeric
            } else {
                ParseError::Format
            });
        }
        let (format, base, exponent) = interpret(suffix)?;
        let nanos = scale(whole, fraction, base, exponent);
        let nanos = if format == Format::BinarySi {
            nanos.min(i128::from(i64::MAX) * NANOS)
        } else {
            nanos
        };
        // A binary fraction below one can't be written with a binary suffix.
        let format = if format == Format::BinarySi && nanos < NANOS {
            Format::DecimalSi
        } else {
            format
        };
        Ok(Self {
            nanos: if negative { -nanos } else { nanos },
            format,
        })
    }
}

/// Letters, a sign, digits, in this order and nothing else.
fn check_suffix_shape(suffix: &str) -> Result<(), ParseError> {
    let rest = suffix.trim_start_matches(|c| "eEinumkKMGTP".contains(c));
    let rest = rest.strip_prefix(['-', '+']).unwrap_or(rest);
    if rest.bytes().all(|b| b.is_ascii_digit()) {
        Ok(())
    } else {
        Err(ParseError::Format)
    }
}

fn interpret(suffix: &str) -> Result<(Format, u32, i32), ParseError> {
    if let Some(power) = BINARY.iter().skip(1).position(|s| *s == suffix) {
        return Ok((Format::BinarySi, 2, 10 * (power as i32 + 1)));
    }
    if let Some(power) = DECIMAL.iter().position(|s| *s == suffix) {
        return Ok((Format::DecimalSi, 10, 3 * (power as i32) - 9));
    }
    match suffix.strip_prefix(['e', 'E']) {
        Some(exponent) => exponent
            .parse()
            .map(|exponent| (Format::DecimalExponent, 10, exponent))
            .map_err(|_| ParseError::Suffix),
        None => Err(ParseError::Suffix),
    }
}

/// `whole.fraction × base^exponent` in nanos, rounded up, saturating.
fn scale(whole: &str, fraction: &str, base: u32, exponent: i32) -> i128 {
    // i128 has 38 digits; what can't matter after rounding is cut, but counts as "more than nothing".
    let mut mantissa: i128 = 0;
    let mut places: i32 = 0;
    let mut lost = false;
    for (index, digit) in whole.bytes().chain(fraction.bytes()).enumerate() {
        if mantissa > i128::MAX / 100 / (1 << 40) {
            // Digits of the whole part that don't fit are scaled back below.
            lost |= digit != b'0';
            places -= i32::from(index < whole.len());
            continue;
        }
        mantissa = mantissa * 10 + i128::from(digit - b'0');
        places += i32::from(index >= whole.len());
    }
    let decimal = 9 - places
        + if base == 10 {
            exponent.clamp(-200, 200)
        } else {
            0
        };
    if base == 2 {
        mantissa = mantissa.saturating_mul(1i128 << exponent.clamp(0, 60));
    }
    let scaled = if decimal >= 0 {
        (0..decimal).fold(mantissa, |m, _| m.saturating_mul(10))
    } else {
        (decimal..0).fold(mantissa, |m, _| {
            lost |= m % 10 != 0;
            m / 10
        })
    };
    scaled
        .saturating_add(i128::from(lost))
        .min(i128::MAX / NANOS)
}

impl fmt::Display for Quantity {
    /// The canonical form: no fraction, the largest suffix that loses nothing.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        let whole = self.nanos / NANOS;
        let binary = self.format == Format::BinarySi && self.is_integer() && whole.abs() >= 1024;
        if binary {
            let (mantissa, power) = strip(whole, 1024, BINARY.len() - 1);
            return write!(f, "{mantissa}{}", BINARY[power]);
        }
        if self.format == Format::DecimalExponent {
            let (mantissa, power) = strip(self.nanos, 1000, usize::MAX);
            let exponent = 3 * power as i32 - 9;
            return if exponent == 0 {
                write!(f, "{mantissa}")
            } else {
                write!(f, "{mantissa}e{exponent}")
            };
        }
        let (mantissa, power) = strip(self.nanos, 1000, DECIMAL.len() - 1);
        write!(f, "{mantissa}{}", DECIMAL[power])
    }
}

/// Divides by `unit` as often as that is exact, at most `max` times.
fn strip(mut value: i128, unit: i128, max: usize) -> (i128, usize) {
    let mut power = 0;
    while power < max && value != 0 && value % unit == 0 {
        value /= unit;
        power += 1;
    }
    (value, power)
}

impl Serialize for Quantity {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Text(String),
            Number(serde_json::Number),
        }
        let text = match Form::deserialize(deserializer)? {
            Form::Text(text) => text,
            Form::Number(number) => number.to_string(),
        };
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn canonical(text: &str) -> String {
        text.parse::<Quantity>().expect(text).to_string()
    }

    #[test]
    fn canonical_forms_are_upstreams() {
        for (from, to) in [
            ("0", "0"),
            ("0Gi", "0"),
            ("1000m", "1"),
            ("0.5", "500m"),
            ("1.5Gi", "1536Mi"),
            ("1024Mi", "1Gi"),
            ("1000", "1k"),
            ("1000Ki", "1000Ki"),
            ("100Mi", "100Mi"),
            ("1e3", "1e3"),
            ("1500e3", "1500e3"),
            ("12e6", "12e6"),
            ("1E", "1E"),
            ("0.1m", "100u"),
            ("0.0000000001", "1n"),
            ("1.1", "1100m"),
            ("0.5Ki", "512"),
            ("0.0001Ki", "102400u"),
            ("-1500m", "-1500m"),
            ("+2", "2"),
            ("1.", "1"),
            (".5", "500m"),
            ("110", "110"),
            ("9223372036854775807", "9223372036854775807"),
            ("100Ei", "9223372036854775807"),
        ] {
            assert_eq!(canonical(from), to, "{from}");
        }
    }

    #[test]
    fn what_is_not_a_quantity_is_refused_in_upstreams_words() {
        for text in ["", "abc", "1 Gi", "1Gi5x", "--1"] {
            assert_eq!(text.parse::<Quantity>(), Err(ParseError::Format), "{text}");
        }
        for text in ["1K", "1mm", "1ki", "1ee"] {
            assert_eq!(text.parse::<Quantity>(), Err(ParseError::Suffix), "{text}");
        }
    }

    #[test]
    fn values_round_away_from_zero() {
        let quantity: Quantity = "1500u".parse().expect("a quantity");
        assert_eq!((quantity.value(), quantity.milli_value()), (1, 2));
        let negative: Quantity = "-1500m".parse().expect("a quantity");
        assert_eq!(negative.value(), -2);
    }

    proptest! {
        #[test]
        fn canonical_text_is_read_back_as_the_same_amount(
            number in 0u64..10_000_000, fraction in 0u32..1000, suffix in prop::sample::select(vec![
                "n", "u", "m", "", "k", "M", "G", "T", "Ki", "Mi", "Gi", "Ti", "e2", "e-3", "E5",
            ])
        ) {
            let quantity: Quantity = format!("{number}.{fraction:03}{suffix}").parse().unwrap();
            let text = quantity.to_string();
            let again: Quantity = text.parse().unwrap();
            prop_assert_eq!(again, quantity);
            prop_assert_eq!(again.to_string(), text);
        }

        #[test]
        fn addition_is_exact_and_undone_by_subtraction(a in any::<i32>(), b in any::<i32>()) {
            let (a, b) = (Quantity::from_milli(a.into()), Quantity::from_milli(b.into()));
            prop_assert_eq!(a + b - b, a);
            prop_assert_eq!(a + b, b + a);
        }

        #[test]
        fn parsing_never_panics(text in "[+-]?[0-9.]{0,60}[eEinumkKMGTP]{0,3}[-+]?[0-9]{0,4}") {
            let _ = text.parse::<Quantity>();
        }
    }
}

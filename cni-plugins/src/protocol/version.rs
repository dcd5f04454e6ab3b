//! Versions of the specification.

use serde_json::{Value, json};

use super::Error;

/// A version of the CNI specification, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// Also what a configuration without a version means.
    V0_1_0,
    V0_2_0,
    V0_3_0,
    V0_3_1,
    V0_4_0,
    V1_0_0,
    V1_1_0,
}

impl Version {
    const ALL: [Self; 7] = [
        Self::V0_1_0,
        Self::V0_2_0,
        Self::V0_3_0,
        Self::V0_3_1,
        Self::V0_4_0,
        Self::V1_0_0,
        Self::V1_1_0,
    ];

    /// The newest that is spoken here.
    pub const NEWEST: Self = Self::V1_1_0;

    /// `1.1.0`
    pub fn name(self) -> &'static str {
        match self {
            Self::V0_1_0 => "0.1.0",
            Self::V0_2_0 => "0.2.0",
            Self::V0_3_0 => "0.3.0",
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// The names of all versions, oldest first.
    pub fn names() -> impl Iterator<Item = &'static str> {
        Self::ALL.into_iter().map(Self::name)
    }

    /// The version of a configuration or a result.
    ///
    /// # Errors
    /// Code 1 for a version that is not spoken here.
    pub fn of(config: &Value) -> Result<Self, Error> {
        let stated = config
            .get("cniVersion")
            .and_then(Value::as_str)
            .unwrap_or_default();
        if stated.is_empty() {
            return Ok(Self::V0_1_0);
        }
        Self::ALL
            .into_iter()
            .find(|version| version.name() == stated)
            .ok_or_else(|| Error::incompatible_version(stated))
    }
}

/// The answer to VERSION: in the version that was asked in, whatever it is.
pub fn version_report(stdin: &[u8]) -> Result<Vec<u8>, Error> {
    let config: Value = serde_json::from_slice(stdin)
        .map_err(|cause| Error::decode(format!("decode version request: {cause}")))?;
    let asked_in = config
        .get("cniVersion")
        .and_then(Value::as_str)
        .unwrap_or(Version::NEWEST.name());
    let supported: Vec<_> = Version::names().collect();
    let report = json!({ "cniVersion": asked_in, "supportedVersions": supported });
    Ok(format!("{report}\n").into_bytes())
}

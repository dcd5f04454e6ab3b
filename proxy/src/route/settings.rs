//! What may change while the ways are kept.

use ipnet::IpNet;
use serde::Deserialize;

/// How other nodes' pods are reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Directly where nodes share a link, else by VXLAN.
    #[default]
    Auto,
    /// Directly or not at all.
    Direct,
    /// By VXLAN.
    Vxlan,
}

/// The mode, and whom pods meet with their own addresses.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// How other nodes' pods are reached.
    pub mode: Mode,
    /// Beyond the cluster's pods, the networks to which this node's pods keep their addresses. They need a way back.
    #[serde(rename = "nonMasqueradeCIDRs")]
    pub non_masquerade_cidrs: Vec<IpNet>,
}

impl Settings {
    /// Parses a file's text, YAML or JSON, with the keys `mode` and `nonMasqueradeCIDRs`; an empty one says the defaults.
    ///
    /// # Errors
    /// What is wrong, with the place.
    pub fn parse(text: &str) -> Result<Settings, String> {
        let parsed: Result<Option<Settings>, _> = serde_saphyr::from_str(text);
        Ok(parsed
            .map_err(|error| error.to_string())?
            .unwrap_or_default())
    }
}

impl From<Mode> for Settings {
    fn from(mode: Mode) -> Settings {
        Settings {
            mode,
            ..Settings::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_may_leave_out_what_it_does_not_change_and_nothing_else_is_in_it() {
        let parsed =
            Settings::parse("mode: vxlan\nnonMasqueradeCIDRs: [192.0.2.0/24, 2001:db8::/32]\n");
        let parsed = parsed.expect("settings");
        assert_eq!(
            (parsed.mode, parsed.non_masquerade_cidrs.len()),
            (Mode::Vxlan, 2)
        );
        for empty in ["", "# nothing\n", "{}"] {
            assert_eq!(Settings::parse(empty), Ok(Settings::default()), "{empty:?}");
        }
        for (wrong, named) in [
            ("mode: ipip", "ipip"),
            ("nonMasqueradeCIDRs: [192.0.2.0/33]", "nonMasqueradeCIDRs"),
            ("modes: auto", "modes"),
        ] {
            let error = Settings::parse(wrong).expect_err(wrong);
            assert!(error.contains(named), "{wrong}: {error}");
        }
    }
}

//! `--debug`, `--log` and `--log-format`: what is told besides errors, in runc's two forms.

use super::Failure;
use serde_json::{Map, Value, json};
use std::fmt::{Debug, Write as _};
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

/// Where lines go. Containers' managers read the last one of a file to tell why a command failed.
pub(super) struct Log {
    /// The standard error with `None`.
    file: Option<File>,
    json: bool,
    most: Level,
}

impl Log {
    /// # Errors
    /// For a format that there isn't, and a file that can't be opened.
    pub(super) fn open(file: Option<&Path>, format: &str, debug: bool) -> Result<Self, Failure> {
        let json = match format {
            "json" => true,
            "text" => false,
            other => {
                return Err(Failure::other(format!(
                    "--log-format {other:?}: neither text nor json"
                )));
            }
        };
        let open = |path: &Path| {
            File::options()
                .append(true)
                .create(true)
                .open(path)
                .map_err(|error| Failure::other(format!("--log {}: {error}", path.display())))
        };
        Ok(Log {
            file: file.map(open).transpose()?,
            json,
            most: if debug { Level::DEBUG } else { Level::INFO },
        })
    }

    fn write(&self, level: &str, message: &str, fields: &Map<String, Value>) {
        let line = line(
            self.json,
            &crate::state::now_rfc3339(),
            level,
            message,
            fields,
        );
        // Nothing is to be done if nobody takes it. In one write, or others' lines get into it.
        let _ = match self.file.as_ref() {
            Some(mut file) => file.write_all(line.as_bytes()),
            None => std::io::stderr().write_all(line.as_bytes()),
        };
    }
}

/// Sends the process's events to `log`, and a failure that was told on the standard error already to its file.
pub(super) struct Logging {
    failures: Option<Log>,
}

impl Logging {
    pub(super) fn start(log: Log) -> Self {
        let copy = log.file.as_ref().and_then(|file| file.try_clone().ok());
        let failures = copy.map(|file| Log {
            file: Some(file),
            ..log
        });
        // A program that has set one up for itself keeps it.
        let _ = tracing::subscriber::set_global_default(log);
        Logging { failures }
    }

    pub(super) fn failed(&self, text: &str) {
        if let Some(log) = &self.failures {
            log.write("error", text, &Map::new());
        }
    }
}

/// One line of the log.
fn line(
    as_json: bool,
    time: &str,
    level: &str,
    message: &str,
    fields: &Map<String, Value>,
) -> String {
    if as_json {
        let mut object = fields.clone();
        object.extend([
            ("level".to_owned(), json!(level)),
            ("msg".to_owned(), json!(message)),
            ("time".to_owned(), json!(time)),
        ]);
        return format!("{}\n", Value::Object(object));
    }
    let mut line = format!("time={time:?} level={level} msg={message:?}");
    for (name, value) in fields {
        let _ = write!(line, " {name}={value}");
    }
    line.push('\n');
    line
}

#[derive(Default)]
struct Words {
    message: String,
    fields: Map<String, Value>,
}

impl Visit for Words {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let text = format!("{value:?}");
        if field.name() == "message" {
            self.message = text;
        } else {
            self.fields.insert(field.name().to_owned(), json!(text));
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.record_debug(field, &format_args!("{value}"));
    }
}

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= self.most
    }

    fn max_level_hint(&self) -> Option<tracing::level_filters::LevelFilter> {
        Some(self.most.into())
    }

    fn new_span(&self, _span: &Attributes<'_>) -> Id {
        // Spans are not told.
        Id::from_u64(1)
    }

    fn record(&self, _span: &Id, _values: &Record<'_>) {}

    fn record_follows_from(&self, _span: &Id, _follows: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut words = Words::default();
        event.record(&mut words);
        let level = match *event.metadata().level() {
            Level::ERROR => "error",
            Level::WARN => "warning",
            Level::INFO => "info",
            Level::DEBUG => "debug",
            Level::TRACE => "trace",
        };
        self.write(level, &words.message, &words.fields);
    }

    fn enter(&self, _span: &Id) {}

    fn exit(&self, _span: &Id) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_runcs_forms() {
        let fields = Map::from_iter([("name".to_owned(), json!("a b"))]);
        assert_eq!(
            line(false, "T", "warning", "say \"no\"", &fields),
            "time=\"T\" level=warning msg=\"say \\\"no\\\"\" name=\"a b\"\n"
        );
        let text = line(true, "T", "warning", "say \"no\"", &fields);
        assert_eq!(
            serde_json::from_str::<Value>(&text).unwrap(),
            json!({"level": "warning", "msg": "say \"no\"", "name": "a b", "time": "T"})
        );
    }

    #[test]
    fn a_format_that_there_is_not_is_refused() {
        assert!(Log::open(None, "xml", false).is_err());
    }
}

//! The lines that go to and fro; [`control`](super) describes them.

use std::fmt::Write;
use std::time::Duration;

use super::ask::{Answer, AskError, Engine, Request};
use crate::registry::EngineInfo;
use crate::{CopierTally, InUse, Reasons, Tally};

/// The longest request, in bytes, its end of line among them.
pub(super) const LONGEST_REQUEST: usize = 512;
/// How a request and an answer begin.
const GREETING: &str = "transhume 1 ";

/// A request as a line.
pub(super) fn write_request(request: &Request) -> Result<String, AskError> {
    Ok(match request {
        Request::Show => format!("{GREETING}show\n"),
        Request::Use { name, only } => {
            let line = format!("{GREETING}use {name} {only}\n");
            let is_word = !name.is_empty() && !name.contains(|c: char| c.is_whitespace());
            if !is_word || line.len() > LONGEST_REQUEST {
                return Err(AskError::Name(name.clone()));
            }
            line
        }
    })
}

/// The request of a line, or what is wrong with it.
pub(super) fn read_request(line: &[u8]) -> Result<Request, String> {
    let line = str::from_utf8(line).map_err(|_| "the request is not text".to_owned())?;
    let mut words = line.split_ascii_whitespace();
    match (words.next(), words.next()) {
        (Some("transhume"), Some("1")) => {}
        (Some("transhume"), Some(other)) => {
            return Err(format!(
                "this program speaks version 1 and not {}",
                clean(other)
            ));
        }
        _ => return Err("a request begins with 'transhume 1'".to_owned()),
    }
    let request = match words.next() {
        Some("show") => Request::Show,
        Some("use") => {
            let name = words.next();
            let name = name.ok_or("'use' wants the name of a copier")?.to_owned();
            let only = words.next().map(str::parse).transpose();
            let only = only.map_err(|unknown: crate::UnknownReason| unknown.to_string())?;
            Request::Use {
                name,
                only: only.unwrap_or_default(),
            }
        }
        _ => return Err("a request is 'show' or 'use NAME [REASONS]'".to_owned()),
    };
    match words.next() {
        None => Ok(request),
        Some(more) => Err(format!("'{}' is one word too many", clean(more))),
    }
}

/// Text in one field of a line: whatever would end it is left out.
fn clean(text: &str) -> String {
    let visible = |c: char| if c.is_control() { '?' } else { c };
    text.chars().map(visible).collect()
}

/// Nothing was done, for this reason.
pub(super) fn write_error(why: &str) -> String {
    format!("{GREETING}error {}\n", clean(why))
}

/// Something was done, and this failed.
pub(super) fn write_failed(why: &str) -> String {
    format!("{GREETING}failed {}\n", clean(why))
}

pub(super) fn write_answer(
    before: Option<&InUse>,
    in_use: &InUse,
    engines: &[EngineInfo],
    copiers: &[CopierTally],
) -> String {
    let mut text = format!("{GREETING}ok\n");
    // Writing to a string does not fail.
    for (word, what) in [("before", before), ("in-use", Some(in_use))] {
        if let Some(InUse { name, only }) = what {
            let _ = writeln!(text, "{word}\t{}\t{only}", clean(name));
        }
    }
    for engine in engines {
        let (here, detail) = match &engine.available {
            Ok(detail) => ("yes", detail.clone()),
            Err(why) => ("no", why.to_string()),
        };
        let (name, what) = (clean(engine.name), clean(engine.what));
        let _ = writeln!(text, "engine\t{name}\t{here}\t{}\t{what}", clean(&detail));
    }
    for copier in copiers {
        let _ = write!(text, "copier\t{}", clean(&copier.name));
        let mut tally = copier.tally;
        for (key, figure) in figures(&mut tally).0 {
            let _ = write!(text, "\t{key}={figure}");
        }
        let _ = writeln!(text, "\tbusy={}", copier.tally.busy.as_nanos());
    }
    text.push_str("end\n");
    text
}

/// The counts of a tally, by name.
struct Figures<'t>([(&'static str, &'t mut u64); 8]);

fn figures(tally: &mut Tally) -> Figures<'_> {
    Figures([
        ("batches", &mut tally.batches),
        ("copied", &mut tally.copied),
        ("declined", &mut tally.declined),
        ("failed", &mut tally.failed),
        ("timed-out", &mut tally.timed_out),
        ("unconfirmed", &mut tally.unconfirmed),
        ("panicked", &mut tally.panicked),
        ("bytes", &mut tally.bytes),
    ])
}

/// What an answer says: itself, or why the other side refused. Nothing if it is not whole.
pub(super) fn read_answer(text: &str) -> Option<Result<Answer, AskError>> {
    let (first, rest) = text.split_once('\n')?;
    let first = first.strip_prefix(GREETING)?;
    if let Some(why) = first.strip_prefix("error ") {
        return Some(Err(AskError::Refused(clean(why))));
    }
    if let Some(why) = first.strip_prefix("failed ") {
        return Some(Err(AskError::Failed(clean(why))));
    }
    let body = rest.strip_suffix("end\n").filter(|_| first == "ok")?;
    let mut answer = Answer::default();
    let mut in_use = None;
    for line in body.lines() {
        let mut fields = line.split('\t');
        match fields.next()? {
            "before" => answer.before = Some(read_in_use(fields)?),
            "in-use" => in_use = Some(read_in_use(fields)?),
            "engine" => answer.engines.push(Engine {
                name: clean(fields.next()?),
                available: fields.next()? == "yes",
                detail: clean(fields.next()?),
                what: clean(fields.next()?),
            }),
            "copier" => answer.copiers.push(read_copier(fields)?),
            _ => {}
        }
    }
    answer.in_use = in_use?;
    Some(Ok(answer))
}

fn read_in_use<'t>(mut fields: impl Iterator<Item = &'t str>) -> Option<InUse> {
    let name = clean(fields.next()?);
    let only = fields.next()?.parse::<Reasons>().ok()?;
    Some(InUse { name, only })
}

fn read_copier<'t>(mut fields: impl Iterator<Item = &'t str>) -> Option<CopierTally> {
    let name = clean(fields.next()?);
    let mut tally = Tally::default();
    for field in fields {
        let (key, figure) = field.split_once('=')?;
        let figure = figure.parse().ok()?;
        if key == "busy" {
            tally.busy = Duration::from_nanos(figure);
        }
        for (name, place) in figures(&mut tally).0 {
            if name == key {
                *place = figure;
            }
        }
    }
    Some(CopierTally { name, tally })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally() -> Tally {
        let mut tally = Tally {
            busy: Duration::from_nanos(123_456_789_012),
            ..Tally::default()
        };
        for ((_, place), figure) in figures(&mut tally).0.into_iter().zip(1..) {
            *place = figure;
        }
        tally
    }

    #[test]
    fn what_is_written_is_read() {
        let in_use = InUse {
            name: "threads:2:memcpy".to_owned(),
            only: "demotion,promotion".parse().unwrap(),
        };
        let before = InUse {
            name: "memcpy".to_owned(),
            only: Reasons::ALL,
        };
        let copiers = [CopierTally {
            name: "memcpy".to_owned(),
            tally: tally(),
        }];
        let engines = crate::engines();
        let text = write_answer(Some(&before), &in_use, &engines, &copiers);
        let answer = read_answer(&text).unwrap().unwrap();
        assert_eq!(answer.before, Some(before));
        assert_eq!(answer.in_use, in_use);
        assert_eq!(answer.copiers, copiers);
        for (read, info) in answer.engines.iter().zip(&engines) {
            assert_eq!((&*read.name, &*read.what), (info.name, info.what));
            assert_eq!(read.available, info.available.is_ok());
        }
        assert_eq!(answer.engines.len(), engines.len());
        for request in [
            Request::Show,
            Request::Use {
                name: "threads:2".to_owned(),
                only: in_use.only,
            },
        ] {
            let line = write_request(&request).unwrap();
            assert_eq!(read_request(line.trim_end().as_bytes()), Ok(request));
        }
    }

    #[test]
    fn a_part_of_an_answer_is_none() {
        let in_use = InUse {
            name: "memcpy".to_owned(),
            only: Reasons::ALL,
        };
        let text = write_answer(None, &in_use, &crate::engines(), &[]);
        for cut in 0..text.len() {
            assert!(read_answer(&text[..cut]).is_none(), "{cut}");
        }
        // What a later program of this version may add.
        let more = text.replace("in-use", "news\t1\nin-use");
        let read = |text| read_answer(text).unwrap().unwrap();
        assert_eq!(read(&more), read(&text));
    }

    #[test]
    fn a_name_cannot_end_its_line() {
        let in_use = InUse {
            name: "a\tb\nend\nc\u{1b}[2J".to_owned(),
            only: Reasons::ALL,
        };
        let text = write_answer(None, &in_use, &[], &[]);
        let answer = read_answer(&text).unwrap().unwrap();
        assert_eq!(answer.in_use.name, "a?b?end?c?[2J");
        for refusal in [write_error("two\nlines"), write_failed("two\nlines")] {
            assert_eq!(refusal.lines().count(), 1);
            assert!(read_answer(&refusal).unwrap().is_err());
        }
        for name in ["", "a b", "a\nb", &"x".repeat(500)] {
            let request = Request::Use {
                name: name.to_owned(),
                only: Reasons::ALL,
            };
            assert!(matches!(write_request(&request), Err(AskError::Name(_))));
        }
    }

    #[test]
    fn wrong_requests_are_told_what_is_wrong() {
        for (line, why) in [
            (&b""[..], "begins with 'transhume 1'"),
            (b"GET / HTTP/1.1", "begins with 'transhume 1'"),
            (b"transhume", "begins with 'transhume 1'"),
            (b"transhume 2 show", "version 1 and not 2"),
            (b"transhume 1", "'show' or 'use NAME [REASONS]'"),
            (b"transhume 1 dance", "'show' or 'use NAME [REASONS]'"),
            (b"transhume 1 show all", "'all' is one word too many"),
            (b"transhume 1 use", "wants the name"),
            (
                b"transhume 1 use memcpy boredom",
                "no reason is named 'boredom'",
            ),
            (
                b"transhume 1 use memcpy all of",
                "'of' is one word too many",
            ),
            (b"\xff\xfe", "not text"),
        ] {
            let refused = read_request(line).unwrap_err();
            assert!(refused.contains(why), "{refused}");
        }
    }
}

//! What the figures say against each other, and what they should.

use super::row::Row;

/// A line for each comparison that the rows allow.
pub(crate) fn lines(rows: &[Row]) -> String {
    let mut lines = Vec::new();
    let find = |table: &str, variant: &str| {
        let mut rows = rows.iter();
        rows.find(|row| row.table == table && row.variant == variant)
    };
    let both = |table, one, other| find(table, one).zip(find(table, other));
    if let Some((naive, planned)) = both("every second", "unfiltered", "planned") {
        lines.push(format!(
            "4k, every second page in its place, planned against unfiltered: {:.1} times the pages/s",
            planned.pages_per_s / naive.pages_per_s
        ));
        for (what, before, after) in [
            ("IPIs", naive.ipis_received, planned.ipis_received),
            ("shootdowns", naive.shootdowns, planned.shootdowns),
        ] {
            if let (Some(before), Some(after)) = (before, after) {
                lines.push(format!(
                    "the same: {} the {what} ({before:.0} to {after:.0}; wanted: 1/100 at most)",
                    share(after, before)
                ));
            }
        }
    }
    if let Some((kernel, planned)) = both("whole", "migrate_pages", "planned") {
        lines.push(format!(
            "4k, a whole process, planned against migrate_pages: {} (wanted: 1.00 at most)",
            times(planned, kernel)
        ));
    }
    if let Some((one, two)) = both("whole", "planned", "planned, 2 workers") {
        lines.push(format!(
            "the same, two workers against one: {:.2} times the pages/s, {:.2} while it is stopped (wanted: \
             1.60 at least, where each has a CPU)",
            two.pages_per_s / one.pages_per_s,
            one.alone_seconds / two.alone_seconds
        ));
    }
    if let Some((one, planned)) = both("whole", "one page a call", "planned") {
        lines.push(format!(
            "the same, planned against one page a call: {:.1} times the pages/s",
            planned.pages_per_s / one.pages_per_s
        ));
    }
    if let Some((free, held)) = both("stall", "planned", "planned, max stall 5 ms") {
        let milli = |micro: f64| micro / 1e3;
        lines.push(format!(
            "4k, longest stall with at most 5 ms asked for against without: {:.1} ms against {:.1} ms; the \
             median of the runs' longest {:.1} ms against {:.1} ms (wanted: less)",
            milli(held.stall_us.max),
            milli(free.stall_us.max),
            milli(held.stall_us.max_median),
            milli(free.stall_us.max_median),
        ));
    }
    if let Some((every, heads)) = both("huge", "every address", "heads only") {
        lines.push(format!(
            "2m, heads only against every address: {} (wanted: 0.80 at most)",
            times(heads, every)
        ));
    }
    if let Some((kernel, heads)) = both("huge", "migrate_pages", "heads only") {
        lines.push(format!(
            "2m, heads only against migrate_pages: {}",
            times(heads, kernel)
        ));
    }
    let errors = rows.iter().map(|row| row.errors).sum::<u64>();
    lines.push(match errors {
        0 => "every move verified by the threads of the process that moved, no errors".to_owned(),
        errors => format!("ERRORS: {errors}"),
    });
    lines.join("\n")
}

/// How the times compare.
fn times(row: &Row, of: &Row) -> String {
    format!(
        "{:.2} of the time while the process is stopped, {:.2} while it is at work",
        row.alone_seconds / of.alone_seconds,
        row.seconds / of.seconds
    )
}

/// As in `1/100`, or as a number where it is more than a half.
fn share(part: f64, of: f64) -> String {
    if part * 2.0 <= of && part > 0.0 {
        format!("1/{:.0} of", of / part)
    } else {
        format!("{:.2} times", part / of.max(1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(table: &'static str, variant: &str, seconds: f64, ipis: f64) -> Row {
        Row {
            table,
            variant: variant.to_owned(),
            seconds,
            alone_seconds: seconds / 2.0,
            pages_per_s: 1000.0 / seconds,
            ipis_received: Some(ipis),
            ..Row::default()
        }
    }

    #[test]
    fn shares_are_fractions() {
        assert_eq!(share(4.0, 2048.0), "1/512 of");
        assert_eq!(share(10.0, 10.0), "1.00 times");
        assert_eq!(share(0.0, 10.0), "0.00 times");
        assert_eq!(share(3.0, 0.0), "3.00 times");
    }

    #[test]
    fn figures_are_compared_within_their_table() {
        let mut rows = vec![
            row("every second", "unfiltered", 8.0, 2048.0),
            row("every second", "planned", 2.0, 8.0),
            row("whole", "migrate_pages", 4.0, 9.0),
            row("whole", "planned", 3.0, 9.0),
            row("whole", "planned, 2 workers", 1.5, 9.0),
            row("huge", "every address", 4.0, 9.0),
            row("huge", "heads only", 2.0, 9.0),
        ];
        let text = lines(&rows);
        for part in [
            "unfiltered: 4.0 times the pages/s",
            "1/256 of the IPIs (2048 to 8;",
            "migrate_pages: 0.75 of the time",
            "two workers against one: 2.00 times the pages/s, 2.00 while",
            "every address: 0.50 of the time",
            "no errors",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(
            !text.contains("shootdowns") && !text.contains("stall"),
            "{text}"
        );
        rows[3].errors = 2;
        assert!(lines(&rows).ends_with("ERRORS: 2"));
        assert_eq!(lines(&[]).lines().count(), 1);
    }
}

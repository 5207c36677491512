//! An order of steps, one column for each who acts.

use std::fmt;

use crate::actor::Event;

/// What was done in an order, step by step.
#[derive(Clone, Debug)]
pub struct Timeline {
    /// The heads of the columns.
    columns: Vec<String>,
    /// For each step its column and what was done.
    steps: Vec<(usize, String)>,
}

/// Columns are not made narrower, nor wider, than this.
const NARROWEST: usize = 18;
const WIDEST: usize = 32;
/// What the number of a step takes.
const NUMBER: usize = 4;
const GAP: usize = 2;

impl Timeline {
    /// One of these steps, by actors with those titles; actors with the same title share a column,
    /// and who did nothing has none.
    pub(crate) fn new(titles: &[String], events: Vec<Event>) -> Self {
        let acts = |title: &String| events.iter().any(|event| titles[event.actor] == *title);
        let mut columns: Vec<String> = Vec::new();
        for title in titles.iter().filter(|title| acts(title)) {
            if !columns.contains(title) {
                columns.push(title.clone());
            }
        }
        let column = |actor: usize| columns.iter().position(|title| *title == titles[actor]);
        let steps = events
            .into_iter()
            .map(|event| (column(event.actor).unwrap_or(0), event.text))
            .collect();
        Self { columns, steps }
    }

    /// How many steps it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.steps.len()
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// The timeline in lines of about `width` characters; of more where there are many columns.
    #[must_use]
    pub fn in_width(&self, width: usize) -> String {
        let room = width.saturating_sub(NUMBER) / self.columns.len().max(1);
        let room = room.saturating_sub(GAP).clamp(NARROWEST, WIDEST);
        let mut text = String::from("step");
        for (n, title) in self.columns.iter().enumerate() {
            let title: String = title.chars().take(room).collect();
            let last = n + 1 == self.columns.len();
            let padded = if last { 0 } else { room };
            text.push_str(&format!("{:GAP$}{title:padded$}", ""));
        }
        for (n, (column, what)) in self.steps.iter().enumerate() {
            let indent = GAP + column * (room + GAP);
            let mut number = (n + 1).to_string();
            for line in lines(what, room) {
                text.push_str(&format!("\n{number:>NUMBER$}{:indent$}{line}", ""));
                number.clear();
            }
        }
        text
    }
}

/// Breaks a text into lines that fit a column.
fn lines(text: &str, room: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.len() + 1 + word.len() <= room => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

impl fmt::Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.in_width(120))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_shared_by_title_and_fit_the_width() {
        let titles = ["at the end", "CPU 0", "migrator", "CPU 0"].map(str::to_owned);
        let event = |actor, text: &str| Event {
            actor,
            text: text.to_owned(),
        };
        let events = vec![
            event(1, "loads"),
            event(2, "sends a shootdown to whoever may have a translation"),
            event(3, "interrupt"),
        ];
        let timeline = Timeline::new(&titles, events);
        let expected = "step  CPU 0               migrator
   1  loads
   2                      sends a shootdown
                          to whoever may
                          have a translation
   3  interrupt";
        assert_eq!(timeline.in_width(44), expected);
        assert!(
            timeline
                .in_width(200)
                .lines()
                .all(|line| line.len() <= 4 + 2 * 34)
        );
        assert_eq!((timeline.len(), timeline.is_empty()), (3, false));
    }
}

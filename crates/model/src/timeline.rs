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
    /// One of these steps, by actors with those titles; actors with the same title share a column: a CPU takes
    /// its own interrupts. Who did nothing has none.
    pub(crate) fn new(titles: &[String], events: Vec<Event>) -> Self {
        let told = |event: Event| Some((event.actor, event.text?));
        let events: Vec<(usize, String)> = events.into_iter().filter_map(told).collect();
        let acts = |title: &String| events.iter().any(|(actor, _)| titles[*actor] == *title);
        let mut columns: Vec<String> = Vec::new();
        for title in titles.iter().filter(|title| acts(title)) {
            if !columns.contains(title) {
                columns.push(title.clone());
            }
        }
        let column = |actor: usize| columns.iter().position(|title| *title == titles[actor]);
        let steps = events
            .into_iter()
            .map(|(actor, text)| (column(actor).unwrap_or(0), text))
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

    /// The timeline in lines of `width` characters, if that is enough for a word: a column for each who acts where
    /// there is room for them, or else who it is beside each step.
    #[must_use]
    pub fn in_width(&self, width: usize) -> String {
        let room = width.saturating_sub(NUMBER) / self.columns.len().max(1);
        let room = room.saturating_sub(GAP).min(WIDEST);
        if room < NARROWEST {
            return self.as_list(width);
        }
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

    fn as_list(&self, width: usize) -> String {
        let titles = self.columns.iter().map(|title| title.chars().count());
        let who = titles.max().unwrap_or(0);
        let room = width.saturating_sub(NUMBER + GAP + who + GAP);
        let mut text = format!("step{:GAP$}{:who$}{:GAP$}does", "", "who", "");
        for (n, (column, what)) in self.steps.iter().enumerate() {
            let (mut number, mut title) = ((n + 1).to_string(), self.columns[*column].as_str());
            for line in lines(what, room) {
                text.push_str(&format!(
                    "\n{number:>NUMBER$}{:GAP$}{title:who$}{:GAP$}{line}",
                    "", ""
                ));
                number.clear();
                title = "";
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
            text: Some(text.to_owned()),
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
        // Where there is no room for columns.
        let expected = "step  who       does
   1  CPU 0     loads
   2  migrator  sends a shootdown to
                whoever may have a
                translation
   3  CPU 0     interrupt";
        assert_eq!(timeline.in_width(36), expected);
    }

    #[test]
    fn what_there_is_nothing_to_tell_of_is_no_step() {
        let titles = ["at the end", "CPU 0", "migrator"].map(str::to_owned);
        let event = |actor, text: Option<&str>| Event {
            actor,
            text: text.map(str::to_owned),
        };
        let events = vec![event(2, None), event(1, Some("loads"))];
        let expected = "step  CPU 0\n   1  loads";
        assert_eq!(Timeline::new(&titles, events).in_width(80), expected);
    }
}

"""What a gin file may name: queries, candidates, teachers, students."""

"""The whole stack on a real uvicorn, spoken to as any client could speak to it."""

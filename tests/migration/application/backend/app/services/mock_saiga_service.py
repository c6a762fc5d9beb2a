class MockSaigaService:
    def generate_response(self, prompt, **kwargs):
        return "Ответ"

    def create_legal_prompt(self, question, context=None):
        return question


mock_saiga_service = MockSaigaService()
